"""The quantized value replaces the float one gradually."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le
from torch import nn

from tersor.training.student import quantizers_in


@dataclass(frozen=True)
class Mixing:
    """Values are ``x + λ(q(x) − x)``, and λ rises from 0 to 1: Liu and Mattina, arXiv 1903.01061.

    Args:
        end: the share of all steps after which λ is 1.
        course: of λ: a straight line, or half a cosine, which is flat at both ends.

    >>> [round(Mixing(end=0.8).share(progress), 2) for progress in (0, 0.4, 0.8, 1)]
    [0.0, 0.5, 1.0, 1.0]
    """

    end: Annotated[float, Gt(0), Le(1)] = 0.5
    course: Literal["linear", "cosine"] = "cosine"

    def __call__(self, student: nn.Module, progress: float) -> None:
        share = self.share(progress)
        for quantizer in quantizers_in(student):
            quantizer.share, quantizer.bits = share, None

    def share(self, progress: float) -> float:
        """λ."""
        if progress >= self.end:
            return 1.0
        done = progress / self.end
        return done if self.course == "linear" else (1 - math.cos(math.pi * done)) / 2
