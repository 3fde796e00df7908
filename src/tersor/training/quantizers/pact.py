"""Learned clipping of activations."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tersor.errors import RecipeError
from tersor.training.quantizers.base import Quantizer, Start
from tersor.training.quantizers.scales import learn_scale, learned_scale


@dataclass(frozen=True)
class Pact:
    """Activations are clipped to [0, α], and α is learned: ∂y/∂α is 1 above α and 0 below it.

    Choi et al., arXiv 1805.06085, with the logarithm of α, which keeps it positive.

    >>> from tersor.numerics import QuantSpec
    >>> quantizer = Pact()(Start("x", QuantSpec("uint2"), torch.tensor(1.0), torch.tensor(0.0)))
    >>> y = quantizer(torch.tensor([-1.0, 1.2, 9.0]))
    >>> y.tolist(), torch.autograd.grad(y.sum(), quantizer.log_scale)[0].item()
    ([0.0, 1.0, 3.0], 3.0)
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"int"})
    roles: ClassVar[frozenset[str]] = frozenset({"activation"})

    def __call__(self, start: Start) -> Quantizer:
        below = (start.zero_point - start.spec.low).amax()
        if below > 0:
            raise RecipeError(
                f"{start.name}: pact clips to [0, α], but this value is quantized from {float(below):g} steps below "
                "zero; take lsq+ for it"
            )
        return LearnedClip(start)


class LearnedClip(Quantizer):
    """A quantizer with a learned upper end; codes between the ends do not move it."""

    zero_point: Tensor

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.log_scale: nn.Parameter = learn_scale(self, start.scale)
        self.register_buffer("zero_point", start.zero_point.detach().clone())

    def grid(self, x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """α over the number of steps; without gradient."""
        return learned_scale(self).detach(), self.zero_point

    def quantized(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """``x`` clipped and rounded."""
        rounded = super().quantized(x)
        top = learned_scale(self) * (self.spec.high - self.zero_point)
        # The values are those of the rounding; α's gradient comes from what lies above it.
        return rounded + torch.where(x.detach() > top.detach(), top - top.detach(), 0.0).to(x.dtype)
