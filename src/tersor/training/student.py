"""What schedules and stabilizers see of a network that trains."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from tersor.training.quantizers.base import Quantizer


class LatentWeight(NamedTuple):
    """A weight that is trained and quantized.

    Args:
        name: the dotted name of the parameter.
        quantizer: a ``tersor.training.quantizers.Quantizer``.
        parameter: what the optimizer moves.
        factor: what the parameter is multiplied by before the quantizer reads it, broadcastable to it: the signs of γ,
            or γ/σ, of a folded BatchNorm; None: 1.
    """

    name: str
    quantizer: Any
    parameter: nn.Parameter
    factor: Tensor | None = None


def quantizers_in(student: nn.Module) -> list[Quantizer]:
    """Every quantizer, from the input to the output."""
    return [module for module in student.modules() if isinstance(module, Quantizer)]


def latent_weights(student: nn.Module) -> Iterator[LatentWeight]:
    """What the student's own ``latent_weights()`` yields, as that of ``Trainable`` does; nothing if it has none."""
    own: Any = getattr(student, "latent_weights", tuple)
    return iter(own())
