"""The range with the smallest squared error."""

from dataclasses import dataclass

import numpy as np

from tersor.numerics import QuantSpec
from tersor.observers.base import cut, finer_than_bins, needs_codes, seen_range
from tersor.observers.moments import Moments, grid_error, moments_of
from tersor.observers.statistics import Statistics

_OCTAVES, _PER_OCTAVE = 12, 8


@dataclass(frozen=True)
class MeanSquaredError:
    """The range that minimises ``Σ (x − q(x))²`` over the histogram, rounding and clipping together.

    Symmetric specs and one-sided data have one threshold: it is searched on a geometric grid, then on a fine one around
    the best. An asymmetric spec with two-sided data has two: a coarse grid of pairs, then one threshold at a time until
    neither moves. The idea is that of Banner et al., arXiv 1810.05723, applied to the measured
    distribution instead of an assumed one. With more codes than bins (int16) the range is that of the extremes.

    >>> import torch
    >>> from tersor.observers import observe
    >>> x = torch.linspace(-1, 1, 10_000)
    >>> x[0] = 3.0
    >>> low, high = MeanSquaredError().range(observe(None, x), QuantSpec("int4"))
    >>> 0.9 < high < 1.1
    True
    """

    order_dependent = False

    def range(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """The range; raises CalibrationError for float formats and granularities other than tensor."""
        needs_codes(spec, "mse")
        low, high = seen_range(statistics, spec)
        if low == high or finer_than_bins(spec):
            return low, high
        if not spec.symmetric and low < 0 < high:
            return _two_sided(moments_of(statistics.histogram), low, high, spec)
        levels = spec.high if spec.symmetric else spec.high - spec.low
        moments = moments_of(statistics.histogram, magnitudes=True)
        return cut(low, high, _one_sided(moments, max(-low, high), levels))


def _one_sided(moments: Moments, largest: float, levels: int) -> float:
    def best(thresholds: np.ndarray) -> float:
        return float(thresholds[grid_error(moments, thresholds / levels, 0, levels).argmin()])

    grid = np.exp2(-np.arange(_OCTAVES * _PER_OCTAVE) / _PER_OCTAVE)
    coarse = best(largest * grid)
    return best(np.minimum(largest, coarse * np.exp2(np.linspace(-1, 1, 33) / _PER_OCTAVE)))


def _two_sided(moments: Moments, low: float, high: float, spec: QuantSpec) -> tuple[float, float]:
    """Searches the end T of the longer side and the number m of codes on the shorter one.

    Their grid, ``s = T / (codes − m)``, is the one that ``qparams`` computes for ``(−m·s, T)``: the zero point is an
    integer from the start, so the search does not depend on its rounding.
    """
    codes = spec.high - spec.low
    major, minor = max(-low, high), min(-low, high)

    def best(ends: np.ndarray, fewer: np.ndarray) -> tuple[float, float]:
        ends, fewer = (a.ravel() for a in np.broadcast_arrays(ends, np.clip(fewer, 0, codes - 1)))
        scale = ends / (codes - fewer)
        sides = (fewer, codes - fewer) if high >= -low else (codes - fewer, fewer)
        error = grid_error(moments, scale, *sides)
        error[(ends > major) | (fewer * scale > minor + scale)] = np.inf  # more than one code beyond all values
        k = error.argmin()
        return float(ends[k]), float(fewer[k])

    ends = major * np.exp2(-np.arange(_OCTAVES * 4) / 4)
    whole = np.rint(codes * minor / (minor + ends))  # the shorter side kept, shrunk in proportion, or dropped
    end, fewer = best(ends, np.stack((whole, np.full_like(whole, whole[0]), np.zeros_like(whole))))
    for octaves in (0.5, 0.125):
        steps = np.exp2(octaves * np.linspace(-1, 1, 17))
        for _ in range(4):
            before = end, fewer
            end, fewer = best(np.array(end), fewer + np.arange(-16, 17))
            end, fewer = best(end * steps, fewer + np.arange(-1, 2)[:, None])
            if (end, fewer) == before:
                break
    shorter = fewer * end / (codes - fewer)
    return (-shorter, end) if high >= -low else (-end, shorter)
