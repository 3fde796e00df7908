"""The protocol of stabilizers, and the integers that they watch.

A weight whose best value lies between two codes flips from one to the other, since the straight-through gradient pushes
it back across the threshold in nearly every step. That spoils BatchNorm's running statistics, and leaves the last code
to chance (Nagel et al., arXiv 2203.11086).
"""

import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tersor.errors import RecipeError
from tersor.numerics.qtensor import wide
from tersor.numerics.ranges import expand
from tersor.training.student import LatentWeight, latent_weights


class Stabilizer:
    """What a training loop calls in each step; its state is deterministic in the weights, and so equal on all ranks."""

    def loss(self, progress: float) -> Tensor | float:
        """What is added to the loss."""
        return 0.0

    def step(self, progress: float) -> None:
        """Change the weights behind the optimizer's step."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed training needs."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the values of ``state_dict``; raises CheckpointError if they do not fit the student."""

    def note(self) -> str:
        """A sentence for the report, or nothing."""
        return ""


@runtime_checkable
class StabilizerEntry(Protocol):
    """An entry of STABILIZERS: a frozen dataclass whose fields are its options."""

    def __call__(self, student: nn.Module) -> Stabilizer:
        """The stabilizer of a student; raises RecipeError if it could act on no weight."""
        ...


def watched(student: nn.Module, name: str, bits: int) -> list[LatentWeight]:
    """The weights that are rounded to at most ``bits`` bits; raises RecipeError if there are none."""
    found = [w for w in latent_weights(student) if w.quantizer.rounds and w.quantizer.spec.format.bits <= bits]
    if not found:
        raise RecipeError(
            f"oscillation: {name} acts on weights that are rounded to at most {bits} bits, and no layer has such "
            "weights: use `oscillation: none`, or raise its option `bits`"
        )
    return found


def deployed(weights: list[LatentWeight]) -> Iterator[LatentWeight]:
    """Those that no schedule holds back: a finer or a mixed grid has other thresholds."""
    return (w for w in weights if w.quantizer.share == 1 and w.quantizer.parts == 1)


def latent(weight: LatentWeight) -> Tensor:
    """What the quantizer reads, differentiable in the parameter alone."""
    return wide(weight.parameter if weight.factor is None else weight.parameter * weight.factor.detach())


@torch.no_grad()
def integers(quantizer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The codes of ``x`` less their zero point; the scale, and the limits of these codes, in shapes that fit ``x``."""
    scale, zero_point = (expand(t, x.shape, quantizer.spec.block) for t in quantizer.grid(x))
    low, high = quantizer.spec.low - zero_point, quantizer.spec.high - zero_point
    return (x / scale).round().clamp(low, high), scale, low, high


def rising(progress: float) -> float:
    """Half a cosine from 0 to 1.

    >>> [round(rising(progress), 2) for progress in (0, 0.25, 0.5, 1)]
    [0.0, 0.15, 0.5, 1.0]
    """
    return (1 - math.cos(math.pi * min(1.0, progress))) / 2
