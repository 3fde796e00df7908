"""A loss that pulls weights to the middle between two thresholds."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from tersor.training.stabilizers.base import Stabilizer, deployed, integers, latent, rising, watched


@dataclass(frozen=True)
class Dampen:
    """The loss ``λ·‖ŵ − clamp(w)‖²`` of all weights w and their quantized values ŵ, which get no gradient.

    λ rises by half a cosine from 0 to ``strength``. Nagel et al., arXiv 2203.11086, section 4.2; a weight beyond the
    range has no gradient, and neither has the scale.

    Args:
        strength: the last λ. Under SGD the paper's code takes 0.1: a weight then moves 0.2 times the learning rate of
            its way in each step, and the default holds for that. Adam divides by the size of gradients: take less.
        bits: the widest formats that it acts on.
    """

    strength: Annotated[float, Gt(0)] = 0.1
    bits: Annotated[int, Ge(2)] = 4

    def __call__(self, student: nn.Module) -> Stabilizer:
        watched(student, "dampen", self.bits)
        return Dampening(self, student)


class Dampening(Stabilizer):
    """The loss of a student's weights; it has no state."""

    def __init__(self, options: Dampen, student: nn.Module) -> None:
        self.options, self.student = options, student

    def loss(self, progress: float) -> Tensor | float:
        """λ times the squared distances."""
        total: Tensor | float = 0.0
        for weight in deployed(watched(self.student, "dampen", self.options.bits)):
            x = latent(weight)
            codes, scale, low, high = integers(weight.quantizer, x)
            total = total + (codes * scale - torch.clamp(x, low * scale, high * scale)).square().sum()
        return self.options.strength * rising(progress) * total
