"""TensorRT's entropy calibration."""

from dataclasses import dataclass

import numpy as np

from tersor.numerics import QuantSpec
from tersor.observers.base import cut, needs_codes, seen_range
from tersor.observers.histogram import COARSE, rebinned
from tersor.observers.statistics import Statistics


@dataclass(frozen=True)
class KullbackLeibler:
    """The threshold T on |x| whose quantized histogram diverges least from the original by KL (Migacz, GTC 2017).

    2048 bins of |x| on [0, max|x|], see ``kl_threshold``. Exact zeros are omitted: they are represented exactly for
    any T, and a ReLU's many zeros would hide the shape of all other values. Levels are the codes on the longer side of
    zero: 128 for symmetric int8, 256 for one-sided data in 256 codes, in between for an asymmetric spec with two-sided
    data. A format of 2048 levels or more (int16) clips nothing.

    >>> import torch
    >>> from tersor.observers import observe
    >>> x = torch.linspace(-1, 1, 100_000)
    >>> x[0] = 10.0
    >>> low, high = KullbackLeibler().range(observe(None, x, per_row=100_000), QuantSpec("int8"))
    >>> high < 1.5
    True
    """

    order_dependent = False

    def range(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """The range; raises CalibrationError for float formats and granularities other than tensor."""
        needs_codes(spec, "kl")
        low, high = seen_range(statistics, spec)
        largest = max(-low, high)
        if largest == 0:
            return low, high
        codes = spec.high - spec.low + 1
        levels = spec.high + 1 if spec.symmetric else round(codes * largest / (high - low))
        h = statistics.histogram
        counts = rebinned(h.magnitudes, h.width, largest, COARSE)
        return cut(low, high, kl_threshold(counts, largest / COARSE, levels))


def kl_threshold(counts: np.ndarray, width: float, levels: int = 128) -> float:
    """The threshold on |x| by TensorRT's rule, from ``counts`` of equal bins of ``width`` starting at 0.

    For every ``i`` from ``levels`` to the number of bins: P is ``counts[:i]`` with all the rest added to its
    last bin; Q is ``counts[:i]`` **without** the rest, merged to ``levels`` groups (bin k to group
    ``⌊k·levels/i⌋``) and each group spread evenly over those of its bins that are not empty in P. Both are
    normalised. T is ``(i + ½)·width`` of the smallest KL(P‖Q), the widest one among equals, never beyond the
    last bin.

    Three cases that TensorRT's slides leave open: the last group gets a count of 1 if it is empty but P is
    not (else KL would be infinite, and a lone outlier would forbid any clipping); ``i = bins``, no
    clipping, is tried too (else a tensor of two values would lose the larger); and an ``i`` that clips more
    than half of the counts is not tried (else values of 2.5 … 3.5 would all become 2.5: KL(P‖Q) of a single
    bin is 0).

    Only one logarithm for each candidate and group is taken; all sums over bins are differences of prefix
    sums.

    >>> kl_threshold(np.ones(2048), width=1.0)        # uniform: nothing is clipped
    2048.0
    """
    counts = np.asarray(counts, dtype=np.float64)
    bins = len(counts)
    if levels >= bins or not counts.any():
        return bins * width
    kept, filled, own = (
        np.concatenate(([0.0], np.cumsum(terms))) for terms in (counts, counts > 0, _x_log_x(counts))
    )
    candidates = np.arange(levels, bins + 1, dtype=np.int32)
    # Blocks that stay in the cache: three times as fast as all candidates at once.
    divergence = np.concatenate(
        [
            _divergence(i, levels, kept, filled, own)
            for i in np.split(candidates, range(128, len(candidates), 128))
        ]
    )
    best = int(candidates[np.flatnonzero(divergence <= divergence.min() + 1e-12)[-1]])
    return min(best + 0.5, float(bins)) * width


def _divergence(
    i: np.ndarray, levels: int, kept: np.ndarray, filled: np.ndarray, own: np.ndarray
) -> np.ndarray:
    """KL(P‖Q) for each ``i``; the others are prefix sums of the counts c, of c > 0 and of c·ln c."""
    total = float(kept[-1])
    tail, last = total - kept[i], kept[i] - kept[i - 1]
    edges = (np.arange(levels + 1, dtype=np.int32) * i[:, None] + np.int32(levels - 1)) // np.int32(levels)
    edges = edges.astype(np.intp)  # divided in 32 bits, where it is fast; used twice as an index
    mass, members = np.diff(kept[edges]), np.diff(filled[edges])
    members[:, -1] += (last == 0) & (tail > 0)
    invented = (mass[:, -1] == 0) & (tail > 0)
    spread = np.where(mass > 0, mass, 1.0) / np.maximum(members, 1.0)
    mass[:, -1] += tail
    cross = np.einsum("ij,ij->i", mass, np.log(spread))
    entropy = own[i - 1] + _x_log_x(last + tail)
    divergence = (entropy - cross) / total + np.log(np.maximum(kept[i] + invented, 1e-300) / total)
    return np.where(kept[i] < 0.5 * total, np.inf, divergence)


def _x_log_x(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1.0))
