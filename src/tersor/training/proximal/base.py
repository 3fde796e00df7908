"""What every proximal map is, and what projections on quantized sets share."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from tersor.errors import NumericsError, RecipeError
from tersor.numerics import QTensor, QuantSpec, all_finite


@runtime_checkable
class Proximal(Protocol):
    """A proximal operator: ``(weight, strength) -> weight``, the minimum over v of ½‖v − weight‖² + strength·g(v)."""

    def __call__(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """A new tensor of the same shape, dtype and device; raises NumericsError for NaN or infinity."""
        ...


class Projection:
    """Shared by all projections on quantized sets: checks, and values that are those of the codes.

    A projection is the proximal operator of an indicator (0 in the set, infinite outside), so its strength has no
    effect. The codes are found with the scale as it will be stored: ``projection(weight)`` is what is deployed.

    All sets are cones, so projections commute with positive factors, for each scale its own; all but asymmetric grids
    are also symmetric, so projections commute with negative ones. Where a BatchNorm follows, the deployed weight is the
    folded one, W·γ/σ with one factor for each channel: with one scale for each channel (or group of inputs) its codes
    are those of W up to the sign of γ, and projecting before folding is projecting after. With one scale for the whole
    tensor that is not so: fold first.
    """

    granularity: str

    @property
    def spec(self) -> QuantSpec:
        """Format and granularity of the set."""
        raise NotImplementedError

    def __call__(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The nearest tensor of the set, in the shape, dtype and on the device of ``weight``."""
        return self.qtensor(weight).dequantize().to(weight.dtype)

    def qtensor(self, weight: Tensor, spec: QuantSpec | None = None) -> QTensor:
        """The codes and scales of the nearest tensor of the set.

        Args:
            weight: float, of any shape that the granularity fits.
            spec: format, granularity and scale dtype instead of the set's own, as a plan decides them.

        Raises:
            NumericsError: the weight is empty or has NaN or infinity.
            RecipeError: the format of ``spec`` cannot hold the set.
        """
        spec = self.spec if spec is None else spec
        if reason := self.refuses(spec):
            raise RecipeError(f"{type(self).__name__} cannot be stored as {spec}: {reason}")
        return self._nearest(checked_weight(weight), spec.with_(rounding="nearest"))

    def refuses(self, spec: QuantSpec) -> str:
        """Why codes of ``spec`` cannot hold the set; empty if they can."""
        raise NotImplementedError

    def _nearest(self, weight: Tensor, spec: QuantSpec) -> QTensor:
        raise NotImplementedError


def checked_weight(weight: Tensor) -> Tensor:
    """``weight``, detached; raises NumericsError for an empty one and for NaN or infinity."""
    if weight.numel() == 0:
        raise NumericsError(f"a weight of shape {tuple(weight.shape)} is empty: leave it out")
    if not all_finite(weight.detach()):
        count = int((~weight.isfinite()).sum())
        raise NumericsError(
            f"{count} of {weight.numel()} values of a weight are NaN or infinite: lower the learning rate or penalty"
        )
    return weight.detach()
