"""Binary weights, balanced, with a gradient that sharpens in the course of training."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tersor.errors import RecipeError
from tersor.training.quantizers.base import Quantizer, Start
from tersor.training.quantizers.binary import mean_magnitude
from tersor.training.quantizers.rounding import Signed


@dataclass(frozen=True)
class IrNet:
    """The sign of weights whose channel mean is removed, so that both signs are equally frequent.

    The gradient is that of ``k·tanh(t·w)`` of the standardized weight (the error-decay estimator): t rises from 0.1 to
    10 with ``progress``, k = max(1/t, 1). Qin et al., arXiv 1909.10788. The scale is the mean magnitude, the one with
    the smallest squared error; the paper's is the nearest power of two.

    >>> from tersor.numerics import QuantSpec
    >>> weight, one = torch.tensor([[3.0, 1.0]]), torch.ones(1, 1)
    >>> IrNet()(Start("w", QuantSpec("binary", "channel"), one, 0 * one, weight))(weight).tolist()
    [[1.0, -1.0]]
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"binary"})
    roles: ClassVar[frozenset[str]] = frozenset({"weight"})

    def __call__(self, start: Start) -> Quantizer:
        return Balanced(start)


class Balanced(Quantizer):
    """A quantizer to the signs of centred weights.

    ``progress``: the share of training that is done, from 0 to 1, which the training loop sets.
    """

    progress: Tensor

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        if start.spec.block:
            raise RecipeError(f"{start.name}: binary scales are per channel or tensor, not {start.spec.granularity}")
        self.register_buffer("progress", torch.zeros(()))

    @property
    def rounds(self) -> bool:
        """False: signs have no finer grid."""
        return False

    def grid(self, x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The mean magnitude of the centred weights, and no zero point."""
        scale = mean_magnitude(x.detach(), self.spec)
        return scale, torch.zeros_like(scale)

    def quantized(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """The sign of the centred weights times their scale."""
        x = self.latent(x)
        return Signed.apply(x, self.grid(x)[0], self._decayed)  # type: ignore[return-value]

    def latent(self, x: Tensor) -> Tensor:
        """The weights without the mean of their channel."""
        shape = self.spec.granularity.scale_shape(x.shape)
        return x - x.mean([dim for dim, count in enumerate(shape) if count == 1], keepdim=True)

    def _decayed(self, x: Tensor) -> Tensor:
        """The slope at weights in units of their scale."""
        t = 10 ** (-1 + 2 * float(self.progress))
        # In units of the standard deviation, which of a normal distribution is √(π/2) mean magnitudes.
        x = x / math.sqrt(math.pi / 2)
        return max(1 / t, 1.0) * t * (1 - torch.tanh(t * x).square())
