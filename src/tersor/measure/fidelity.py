"""The signal-to-quantization-noise ratio (SQNR) in dB, accumulated over batches.

A layer's local SQNR compares its output with only that layer quantized and exact inputs; the accumulated SQNR
compares the layer's output in the two whole networks. The arithmetic is the same.
"""

import math
from dataclasses import dataclass

from torch import Tensor

CEILING = 150.0  # dB; float32 rounding is at 150, so anything better counts as exact


@dataclass(frozen=True)
class SignalNoise:
    """Sums of squares of a signal and its error over any number of batches; instances can be added.

    >>> round((SignalNoise(100.0, 1.0) + SignalNoise(100.0, 1.0)).db, 2)
    20.0
    """

    signal: float = 0.0
    noise: float = 0.0

    def __add__(self, other: "SignalNoise") -> "SignalNoise":
        return SignalNoise(self.signal + other.signal, self.noise + other.noise)

    @property
    def db(self) -> float | None:
        """10·log10(signal / noise), clamped to ±150; 150 for an exact copy; None with NaN or infinity."""
        if not (math.isfinite(self.signal) and math.isfinite(self.noise)):
            return None
        if self.noise == 0:
            return CEILING
        if self.signal == 0:
            return -CEILING
        # Two logarithms, since the quotient of extreme sums could overflow.
        return max(-CEILING, min(CEILING, 10 * (math.log10(self.signal) - math.log10(self.noise))))


def compare(reference: Tensor, approximate: Tensor) -> SignalNoise:
    """Signal and noise of one pair of tensors of the same shape, summed in float64.

    >>> import torch
    >>> compare(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    SignalNoise(signal=25.0, noise=0.25)
    """
    if reference.shape != approximate.shape:
        raise ValueError(
            f"reference has shape {list(reference.shape)}, approximate {list(approximate.shape)}: "
            "compare the same output of both networks"
        )
    exact = reference.detach().double()
    return SignalNoise(
        exact.square().sum().item(), (exact - approximate.detach().double()).square().sum().item()
    )


def sqnr_db(reference: Tensor, approximate: Tensor) -> float | None:
    """The SQNR in dB: 20 dB is an error of 10 %, 6.02 dB are one bit.

    >>> import torch
    >>> round(sqnr_db(torch.tensor([10.0, 0.0]), torch.tensor([10.0, 1.0])), 6)
    20.0
    """
    return compare(reference, approximate).db
