"""Ternary weights: thresholds from the weights themselves, levels computed or learned."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from tersor.errors import NumericsError, RecipeError
from tersor.numerics.finite import has_nan
from tersor.training.quantizers.base import Quantizer, Start
from tersor.training.quantizers.scales import RATE, learn_scale, learned_scale, share


@dataclass(frozen=True)
class Twn:
    """Codes are ``sign(w)`` where |w| exceeds ``threshold`` · mean|w| of its channel, and 0 elsewhere.

    The level is the mean of |w| above the threshold, which has the smallest squared error for it. Li et al.,
    arXiv 1605.04711.

    >>> from tersor.numerics import QuantSpec
    >>> weight, one = torch.tensor([[3.0, -1.0, 0.1, 0.1]]), torch.ones(1, 1)
    >>> Twn()(Start("w", QuantSpec("ternary", "channel"), one, 0 * one, weight))(weight).tolist()
    [[2.0, -2.0, 0.0, 0.0]]
    """

    threshold: Annotated[float, Ge(0), Le(2)] = 0.7
    kinds: ClassVar[frozenset[str]] = frozenset({"ternary"})
    roles: ClassVar[frozenset[str]] = frozenset({"weight"})

    def __call__(self, start: Start) -> Quantizer:
        return Ternary(start, self.threshold, "mean", None)


@dataclass(frozen=True)
class Ttq:
    """The threshold is ``threshold`` · max|w|, and the level of each channel is learned.

    Zhu et al., arXiv 1612.01064: the level's gradient is Σ of ±g over its weights; a latent weight's is g times its
    level, relative to the mean of all levels, and g itself where the code is 0. The paper's two levels, of positive and
    of negative weights, are one here: a stored ternary tensor has one scale for each channel, in every engine.

    Args:
        threshold: as a share of the largest weight of the channel.
        rate: of the level under SGD, as in ``lsq``.

    >>> from tersor.numerics import QuantSpec
    >>> weight, one = torch.tensor([[3.0, -1.0, 0.1, 0.1]]), torch.ones(1, 1)
    >>> quantizer = Ttq()(Start("w", QuantSpec("ternary", "channel"), one, 0 * one, weight))
    >>> quantizer(weight).tolist()
    [[1.0, -1.0, 0.0, 0.0]]
    """

    threshold: Annotated[float, Ge(0), Le(1)] = 0.05
    rate: Annotated[float, Gt(0)] = RATE
    kinds: ClassVar[frozenset[str]] = frozenset({"ternary"})
    roles: ClassVar[frozenset[str]] = frozenset({"weight"})

    def __call__(self, start: Start) -> Quantizer:
        return Ternary(start, self.threshold, "max", self.rate)


class Ternary(Quantizer):
    """A quantizer to −s, 0 and s by thresholds for each channel, or for the whole tensor."""

    def __init__(self, start: Start, threshold: float, of: Literal["mean", "max"], rate: float | None) -> None:
        super().__init__(start)
        if start.spec.block:
            raise RecipeError(f"{start.name}: a threshold is per channel or tensor, not per {start.spec.granularity}")
        self.threshold, self.of, self.rate = threshold, of, rate
        self.log_scale: nn.Parameter | None = None if rate is None else learn_scale(self, start.scale)

    @property
    def rounds(self) -> bool:
        """False: thresholds have no finer grid."""
        return False

    def grid(self, x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The level of each channel, and no zero point."""
        if self.log_scale is None or self.rate is None:
            level = self._level(x.detach())
        else:
            normalized = self.rate * share(x, self.log_scale.numel(), 1, self.is_weight)
            level = learned_scale(self, factor, normalized)
        return level, torch.zeros_like(level)

    def quantized(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """The codes times the level."""
        level, _ = self.grid(x, factor)
        codes, slope = self._signs(x.detach()), 1.0
        if self.log_scale is not None:
            slope = torch.where(codes == 0, 1.0, level.detach() / level.detach().mean())
        return _StraightThrough.apply(x, codes, level, slope)  # type: ignore[return-value]

    def codes(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """−1, 0 or 1 of every weight, by the thresholds."""
        if has_nan(x):
            raise NumericsError(f"a tensor of shape {tuple(x.shape)} contains NaN, which has no code: remove it")
        return self._signs(x).to(self.spec.format.dtype)

    def _signs(self, x: Tensor) -> Tensor:
        # The product keeps NaN, as rounding does.
        return torch.sign(x) * (x.abs() > self._threshold(x)) + 0 * x

    def _dims(self, x: Tensor) -> list[int]:
        shape = self.spec.granularity.scale_shape(x.shape)
        return [dim for dim, count in enumerate(shape) if count == 1]

    def _threshold(self, x: Tensor) -> Tensor:
        magnitude, dims = x.abs(), self._dims(x)
        whole = magnitude.mean(dims, keepdim=True) if self.of == "mean" else magnitude.amax(dims, keepdim=True)
        return self.threshold * whole

    def _level(self, x: Tensor) -> Tensor:
        above, dims = x.abs() > self._threshold(x), self._dims(x)
        total = (x.abs() * above).sum(dims, keepdim=True)
        return (total / above.sum(dims, keepdim=True).clamp(min=1)).clamp(min=torch.finfo(torch.float32).tiny)


class _StraightThrough(torch.autograd.Function):
    """``codes · level``; the gradient for ``x`` is ``slope`` times that of the result."""

    @staticmethod
    def forward(ctx, x, codes, level, slope):
        ctx.save_for_backward(codes, level)
        ctx.slope = slope
        return (codes * level).to(x.dtype)

    @staticmethod
    def backward(ctx, *gradients):
        codes, level = ctx.saved_tensors
        (gradient,) = gradients
        for_level = (gradient * codes).sum_to_size(level.shape) if ctx.needs_input_grad[2] else None
        return gradient * ctx.slope, None, for_level, None
