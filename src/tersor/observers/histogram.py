"""A histogram on a universal grid: aligned to zero, with a power of two as bin width."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BINS = 8192  # on each side of zero, of which more than half lie inside max|x|
_SMALLEST = -100  # the grid's reach is at least 2**_SMALLEST, so that 1/width is a float32 too
_PIECE = 2**17  # values indexed and counted at once, so that they stay in the cache
# Takes the first bin's values, at index -1, to four places in turn: after a ReLU they are most of all values, and each
# count would wait for the one before.
_SPREAD = torch.tensor([k * BINS + BINS - 1 for k in range(4)], dtype=torch.int16).repeat(_PIECE // 4)
COARSE = 2048  # what KL searches; also TensorRT's number


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of a signed, zero-aligned grid of ``2 · 8192`` bins.

    The bin width is the smallest power of two with which 8192 bins a side hold max|x|. A grid twice as wide
    has every second edge of this one, so growing only adds neighbouring bins: the counts do not depend on the
    order of the batches, and two workers' histograms merge to exactly the one that a single worker would
    have made.

    Exact zeros are counted separately: every quantizer represents them exactly, whatever its range, and after a
    ReLU they are half of all values and would drown the rest.

    Attributes:
        exponent: the bin width is ``2.0 ** exponent``.
        counts: int64 ``[2 · 8192]``; bin k holds ``(k − 8192)·width ≤ x < (k − 8191)·width`` but not x = 0.
        zeros: how many values were exactly 0.

    >>> h = histogram_of(torch.tensor([0.0, 1.0, 1.0, -3.0]), 3.0)
    >>> h.total, h.zeros, h.width
    (4, 1, 0.00048828125)
    """

    exponent: int
    counts: np.ndarray
    zeros: int

    @property
    def width(self) -> float:
        """The width of a bin, in the unit of the tensor."""
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        """How many values were counted, zeros included."""
        return int(self.counts.sum()) + self.zeros

    @property
    def edges(self) -> np.ndarray:
        """The ``2 · 8192 + 1`` edges of the bins, float64, ascending."""
        return np.arange(-BINS, BINS + 1) * self.width

    @property
    def magnitudes(self) -> np.ndarray:
        """The histogram of |x| without the zeros: int64 ``[8192]``, bin k from ``k·width``."""
        return self.counts[BINS:] + self.counts[BINS - 1 :: -1]

    def coarsened(self, exponent: int) -> "Histogram":
        """The same values on the grid of a wider (or this) bin."""
        steps = exponent - self.exponent
        if steps == 0:
            return self
        # Beyond 2^14, each side is a single bin; the loop below would only move zeros.
        ratio = 1 << min(steps, 14)
        reach = -(-BINS // ratio)
        positive = _summed(self.counts[BINS:], ratio)
        negative = _summed(self.counts[BINS - 1 :: -1], ratio)
        counts = np.zeros_like(self.counts)
        counts[BINS : BINS + reach] = positive
        counts[BINS - reach : BINS] = negative[::-1]
        return Histogram(exponent, counts, self.zeros)

    def merged(self, other: "Histogram") -> "Histogram":
        """Both together, on the wider of the two grids."""
        exponent = max(self.exponent, other.exponent)
        a, b = self.coarsened(exponent), other.coarsened(exponent)
        return Histogram(exponent, a.counts + b.counts, a.zeros + b.zeros)


def _summed(counts: np.ndarray, ratio: int) -> np.ndarray:
    """Sums of every ``ratio`` neighbours, the last group padded with zeros."""
    padded = np.pad(counts, (0, -len(counts) % ratio))
    return padded.reshape(-1, ratio).sum(1)


def histogram_of(values: Tensor, largest: float, signed: bool = True) -> Histogram:
    """The histogram of a finite float32 tensor on the CPU, on the grid that holds ``largest`` ≥ max|values|.

    ``largest`` may come from more values than are counted: a subsample lands on the grid of the whole.
    ``signed`` may be False if no value is negative, which is faster.
    """
    reach = math.frexp(largest)[1] if largest else _SMALLEST  # frexp returns exponent 0 for 0
    exponent = max(reach, _SMALLEST) - BINS.bit_length() + 1
    counts = np.zeros(2 * BINS, dtype=np.int64)
    count, zeros = _count_signed if signed else _count_positive, 0
    for piece in values.reshape(-1).split(_PIECE):
        # Multiplying by a power of two is exact, and so is floor: no value changes its bin by rounding.
        count(piece * math.ldexp(1.0, -exponent), counts)
        zeros += int(np.count_nonzero(piece.numpy() == 0))  # torch.count_nonzero takes forty times as long
    counts[BINS] -= zeros
    return Histogram(exponent, counts, zeros)


def _count_signed(bins: Tensor, counts: np.ndarray) -> None:
    """Count values in units of a bin; the tensor is overwritten."""
    index = bins.floor_().add_(BINS).to(torch.int16)
    counts += torch.bincount(index, minlength=2 * BINS).numpy()


def _count_positive(bins: Tensor, counts: np.ndarray) -> None:
    """The same without negative values."""
    index = bins.to(torch.int16).sub_(1).bitwise_and_(_SPREAD[: len(bins)])  # the conversion itself is a floor
    found = torch.bincount(index, minlength=4 * BINS).numpy()
    counts[BINS + 1 :] += found[: BINS - 1]
    counts[BINS] += found[BINS - 1 :: BINS].sum()


def rebinned(counts: np.ndarray, width: float, largest: float, bins: int = COARSE) -> np.ndarray:
    """``counts`` of ``bins`` equal bins on [0, largest], from those of bins of ``width`` that reach as far.

    An old bin that straddles a new edge is divided as if it were filled evenly, rounded so that every value
    is counted once.

    >>> rebinned(np.array([4, 4, 4, 4]), 1.0, 4.0, 2).tolist()
    [8, 8]
    >>> rebinned(np.array([6, 6, 6]), 1.0, 3.0, 2).tolist()
    [9, 9]
    """
    below = np.concatenate(([0], np.cumsum(counts)))
    at = np.interp(np.linspace(0.0, largest / width, bins + 1), np.arange(len(below)), below)
    at[-1] = below[-1]
    return np.diff(np.rint(at)).astype(np.int64)
