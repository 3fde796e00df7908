"""Weights squashed by tanh before rounding."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tersor.numerics.ranges import reduce_range
from tersor.training.quantizers.base import Quantizer, Start


@dataclass(frozen=True)
class Dorefa:
    """Weights ``tanh(w) / max|tanh(w)|`` on a uniform grid over [−1, 1], times the starting range.

    Zhou et al., arXiv 1606.06160, with two changes: the grid holds zero, as every format of Tersor does, and the
    weights keep their size (the paper's lie in [−1, 1]), so that training starts from the given network.

    >>> from tersor.numerics import QuantSpec
    >>> weight = torch.tensor([[2.0, -0.5, 0.1]])
    >>> spec = QuantSpec("int2")
    >>> Dorefa()(Start("w", spec, torch.tensor(2.0), torch.tensor(0.0), weight))(weight).tolist()
    [[2.0, -0.0, 0.0]]
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"int", "ternary"})
    roles: ClassVar[frozenset[str]] = frozenset({"weight"})

    def __call__(self, start: Start) -> Quantizer:
        return Squashed(start)


class Squashed(Quantizer):
    """A quantizer of squashed weights, whose grid spans the largest weight of each scale."""

    commutes: ClassVar[bool] = False
    scale: Tensor

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.register_buffer("scale", start.scale.detach().clone())

    @property
    def rounds(self) -> bool:
        """False: what is rounded is the squashed weight."""
        return False

    def latent(self, x: Tensor) -> Tensor:
        """tanh of the weights, with their own largest magnitude."""
        squashed, largest = torch.tanh(x), x.detach().abs().amax()
        return squashed * (largest / squashed.detach().abs().amax().clamp(min=torch.finfo(x.dtype).tiny))

    def grid(self, x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The scale that spans the largest weight, which is the start's if all are zero; the middle code."""
        spec, (low, high) = self.spec, reduce_range(x.detach().float(), self.spec)
        zero = 0 if spec.symmetric else (spec.low + spec.high + 1) // 2
        largest = torch.maximum(-low, high).reshape(self.scale.shape)
        # Of one bit, zero is the upper code.
        scale = torch.where(largest > 0, largest / ((spec.high - zero) or 1), self.scale)
        return scale.clamp(min=torch.finfo(torch.float32).tiny), torch.full_like(scale, zero)
