"""How much signal is left beside the noise that quantization added: SQNR in dB, streamed over batches.

The local figure of a layer compares its output with only that layer quantized and exact inputs; the
accumulated figure compares the outputs of two whole networks. Both are the same arithmetic on other tensors.
"""

import math
from dataclasses import dataclass

from torch import Tensor

CEILING = 150.0  # dB; float32's own rounding is at 150: what is better than that counts as exact


@dataclass(frozen=True)
class SignalNoise:
    """Sums of squares of a signal and of its error over any number of batches; a value that adds up.

    >>> round((SignalNoise(100.0, 1.0) + SignalNoise(100.0, 1.0)).db, 2)
    20.0
    """

    signal: float = 0.0
    noise: float = 0.0

    def __add__(self, other: "SignalNoise") -> "SignalNoise":
        return SignalNoise(self.signal + other.signal, self.noise + other.noise)

    @property
    def db(self) -> float | None:
        """10·log10(signal / noise) within ±150; an exact copy has 150; None where NaN or infinity came in."""
        if not (math.isfinite(self.signal) and math.isfinite(self.noise)):
            return None
        if self.noise == 0:
            return CEILING
        if self.signal == 0:
            return -CEILING
        # Two logarithms: the quotient of extreme sums would overflow.
        return max(-CEILING, min(CEILING, 10 * (math.log10(self.signal) - math.log10(self.noise))))


def compare(reference: Tensor, approximate: Tensor) -> SignalNoise:
    """Signal and noise of one pair of tensors of the same shape, summed in float64.

    >>> import torch
    >>> compare(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    SignalNoise(signal=25.0, noise=0.25)
    """
    if reference.shape != approximate.shape:
        raise ValueError(
            f"signal of shape {list(reference.shape)} against {list(approximate.shape)}; "
            "compare the same output of both networks"
        )
    exact = reference.detach().double()
    return SignalNoise(
        exact.square().sum().item(), (exact - approximate.detach().double()).square().sum().item()
    )


def sqnr_db(reference: Tensor, approximate: Tensor) -> float | None:
    """The signal-to-quantization-noise ratio in dB: 20 dB = an error of a tenth; 6.02 dB are one bit.

    >>> import torch
    >>> round(sqnr_db(torch.tensor([10.0, 0.0]), torch.tensor([10.0, 1.0])), 6)
    20.0
    """
    return compare(reference, approximate).db
