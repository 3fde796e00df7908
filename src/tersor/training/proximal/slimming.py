"""The proximal operator of network slimming."""

from dataclasses import dataclass

from tersor.training.proximal.l1 import L1


@dataclass(frozen=True)
class Slimming(L1):
    """L1 on the scales γ of BatchNorms (arXiv 1708.06519), which makes whole channels zero up to their shift.

    The paper adds sign(γ) to the gradient; a soft threshold has the same minimum, and reaches zero exactly.

    >>> import torch
    >>> Slimming()(torch.tensor([1.0, 0.1]), 0.25)
    tensor([0.7500, 0.0000])
    """
