"""The proximal operator of the L1 norm."""

from dataclasses import dataclass

from torch import Tensor

from tersor.errors import NumericsError
from tersor.training.proximal.base import checked_weight


@dataclass(frozen=True)
class L1:
    """Soft threshold: ``sign(w)·max(|w| − strength, 0)``, the minimum of ½(v − w)² + strength·|v|.

    Applied after each gradient step with strength lr·λ it minimizes loss + λ·Σ|w|, and weights become exactly zero
    (ISTA; Daubechies, Defrise and De Mol, arXiv math/0307152).

    >>> import torch
    >>> L1()(torch.tensor([0.5, -2.0, 0.1]), 0.25)
    tensor([ 0.2500, -1.7500,  0.0000])
    """

    def __call__(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The shrunken weight; raises NumericsError for NaN or infinity, and for a negative strength."""
        if not 0 <= strength < float("inf"):
            raise NumericsError(f"the strength of an L1 step is {strength:g}: it must be finite and not negative")
        weight = checked_weight(weight)
        return weight - weight.clamp(-strength, strength)
