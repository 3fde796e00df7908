"""The range of the smallest squared error."""

from dataclasses import dataclass

import numpy as np

from tersor.numerics import QuantSpec
from tersor.observers.base import cut, finer_than_bins, needs_codes, seen_range
from tersor.observers.moments import Moments, grid_error, moments_of
from tersor.observers.statistics import Statistics

_OCTAVES, _PER_OCTAVE = 12, 8


@dataclass(frozen=True)
class MeanSquaredError:
    """The range minimising ``Σ (x − q(x))²`` over the histogram, rounding and clipping together.

    Symmetric specs and one-sided data have one threshold to find: a geometric grid, then a fine one around
    its best. An asymmetric spec of two-sided data has two: shrunk together first, then one at a time until
    neither moves, on the very grids that ``qparams`` will make of them. The idea is that of Banner et al.,
    arXiv 1810.05723, on the measured instead of an assumed distribution. More codes than
    bins (int16): the extremes.

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
    codes = spec.high - spec.low

    def best(lows: np.ndarray, highs: np.ndarray) -> tuple[float, float]:
        lows, highs = np.broadcast_arrays(lows, highs)
        scale = (highs - lows) / codes
        below = np.clip(-np.rint(lows / scale), 0, codes)  # qparams rounds the zero point just so
        k = grid_error(moments, scale, below, codes - below).argmin()
        return float(lows[k]), float(highs[k])

    shrink = np.exp2(-np.arange(_OCTAVES * 4) / 4)
    a, b = best(low * shrink, high * shrink)
    for steps in (np.exp2(np.linspace(-2, 2, 33)), np.exp2(np.linspace(-1, 1, 17) / 8)):
        for _ in range(3):
            before = a, b
            a, b = best(np.append(np.maximum(low, a * steps), 0.0), np.array(b))
            a, b = best(np.array(a), np.minimum(high, b * steps))
            if (a, b) == before:
                break
    return a, b
