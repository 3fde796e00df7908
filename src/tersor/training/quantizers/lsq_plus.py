"""Learned step size and offset, for values that are not centred on zero."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn

from tersor.errors import RecipeError
from tersor.training.quantizers.base import Quantizer, Start
from tersor.training.quantizers.rounding import Round
from tersor.training.quantizers.scales import RATE, learn_scale, learned_scale, share


@dataclass(frozen=True)
class LsqPlus:
    """Scale and zero point are learned; the zero point is rounded, so that 0 stays exactly representable.

    Bhalgat et al., arXiv 2004.09576: ∂y/∂z is ``−s`` outside the range and 0 inside.

    Args:
        rate: of the scale under SGD, as in ``lsq``.

    >>> import torch
    >>> from tersor.numerics import QuantSpec
    >>> spec = QuantSpec("uint2", symmetric=False)
    >>> quantizer = LsqPlus()(Start("x", spec, torch.tensor(1.0), torch.tensor(1.0)))
    >>> quantizer(torch.tensor([-9.0, 0.4, 9.0])).tolist()
    [-1.0, 0.0, 2.0]
    """

    rate: Annotated[float, Gt(0)] = RATE
    kinds: ClassVar[frozenset[str]] = frozenset({"int"})
    roles: ClassVar[frozenset[str]] = frozenset({"weight", "activation"})

    def __call__(self, start: Start) -> Quantizer:
        if start.spec.symmetric:
            raise RecipeError(f"{start.name}: lsq+ learns the zero point, but {start.spec} has none; take lsq")
        return LearnedStepAndOffset(start, self.rate)


class LearnedStepAndOffset(Quantizer):
    """A quantizer with a learned scale and zero point."""

    start_offset: Tensor

    def __init__(self, start: Start, rate: float) -> None:
        super().__init__(start)
        self.rate = rate
        self.log_scale: nn.Parameter = learn_scale(self, start.scale)
        # From the start, as the scale: a decay of the parameter pulls to it.
        self.register_buffer("start_offset", start.zero_point.detach().clone())
        self.offset = nn.Parameter(torch.zeros_like(start.zero_point))

    def grid(self, x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The learned scale and the rounded, clipped offset."""
        normalized = self.rate * share(x, self.log_scale.numel(), self.spec.high, self.is_weight)
        exact = self.start_offset + self.offset
        # The gradient passes the limits, so that an offset beyond them returns.
        offset = exact + (exact.clamp(self.spec.low, self.spec.high) - exact).detach()
        return learned_scale(self, factor, normalized), Round.apply(offset)  # type: ignore[return-value]
