"""Binary weights and activations: the sign, times a scale."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from tersor.errors import RecipeError
from tersor.numerics import QuantSpec
from tersor.training.quantizers.base import Quantizer, Start
from tersor.training.quantizers.rounding import Signed
from tersor.training.quantizers.scales import RATE, learn_scale, learned_scale, share


@dataclass(frozen=True)
class Sign:
    """``±s`` by the sign. The scale of a weight is the mean of |w| of its channel, that of an activation is learned.

    Rastegari et al., arXiv 1603.05279; the gradient passes where |x| ≤ s (arXiv 1602.02830), or by Bi-Real's
    ``2 − 2·|x/s|`` (arXiv 1808.00278).

    Args:
        gradient: ``clip`` or ``bi-real``.
        scale: ``mean`` of |w|, ``learned`` from the start, or ``auto``: by the role.
        rate: of a learned scale under SGD, as in ``lsq``.

    >>> from tersor.numerics import QuantSpec
    >>> weight, one = torch.tensor([[3.0, -1.0]]), torch.ones(1, 1)
    >>> Sign()(Start("w", QuantSpec("binary", "channel"), one, 0 * one, weight))(weight).tolist()
    [[2.0, -2.0]]
    """

    gradient: Literal["clip", "bi-real"] = "clip"
    scale: Literal["auto", "mean", "learned"] = "auto"
    rate: Annotated[float, Gt(0)] = RATE
    kinds: ClassVar[frozenset[str]] = frozenset({"binary"})
    roles: ClassVar[frozenset[str]] = frozenset({"weight", "activation"})

    def __call__(self, start: Start) -> Quantizer:
        learned = self.scale == "learned" or (self.scale == "auto" and start.weight is None)
        if not learned and start.weight is None:
            raise RecipeError(f"{start.name}: the scale of binary activations is `learned`: their mean is not known")
        return Binary(start, bi_real if self.gradient == "bi-real" else None, self.rate if learned else None)


def bi_real(x: Tensor) -> Tensor:
    """The slope of Bi-Real's piecewise polynomial approximation of the sign."""
    return (2 - 2 * x.abs()).clamp(min=0)


class Binary(Quantizer):
    """A quantizer to −s and s, for each channel or for the whole tensor."""

    def __init__(self, start: Start, slope: Any, rate: float | None) -> None:
        super().__init__(start)
        if start.spec.block:
            raise RecipeError(f"{start.name}: binary scales are per channel or tensor, not {start.spec.granularity}")
        self.slope, self.rate = slope, rate
        self.log_scale: nn.Parameter | None = None if rate is None else learn_scale(self, start.scale)

    @property
    def rounds(self) -> bool:
        """False: signs have no finer grid."""
        return False

    def grid(self, x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The scale, and no zero point."""
        if self.log_scale is None or self.rate is None:
            scale = mean_magnitude(x.detach(), self.spec)
        else:
            normalized = self.rate * share(x, self.log_scale.numel(), 1, self.is_weight)
            scale = learned_scale(self, factor, normalized)
        return scale, torch.zeros_like(scale)

    def quantized(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """The sign times the scale."""
        x = self.latent(x)
        return Signed.apply(x, self.grid(x, factor)[0], self.slope)  # type: ignore[return-value]


def mean_magnitude(x: Tensor, spec: QuantSpec) -> Tensor:
    """The mean of |x| of each scale, at least the smallest normal number."""
    dims = [dim for dim, count in enumerate(spec.granularity.scale_shape(x.shape)) if count == 1]
    return x.abs().mean(dims, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
