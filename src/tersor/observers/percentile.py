"""The range of nearly all values."""

from dataclasses import dataclass

import numpy as np

from tersor.errors import CalibrationError
from tersor.numerics import QuantSpec
from tersor.observers.base import cut, seen_range
from tersor.observers.statistics import Statistics


@dataclass(frozen=True)
class Percentile:
    """Clips the largest magnitudes: ``percent`` of all values, zeros included, have |x| ≤ T.

    The range is ``[min, max]`` inside ±T. 99.99 is common; 99 drops the top 1 %. The position of T inside its
    bin is interpolated, so T is within one bin (max|x| / 4096 or less) of the exact one.

    >>> import torch
    >>> from tersor.observers import observe
    >>> s = observe(None, torch.arange(1001.0).reshape(1, -1))
    >>> low, high = Percentile(99.0).range(s, QuantSpec("uint8"))
    >>> round(high)
    990
    """

    percent: float = 99.99
    order_dependent = False

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise CalibrationError(f"percentile {self.percent} lies outside (0, 100]: 99.99 is common")

    def range(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """The range; raises CalibrationError for a granularity other than tensor."""
        low, high = seen_range(statistics, spec)
        histogram = statistics.histogram
        if self.percent == 100 or low == high:
            return low, high
        below = np.concatenate(([0], np.cumsum(histogram.magnitudes))) + histogram.zeros
        wanted = histogram.total * self.percent / 100
        k = int(np.searchsorted(below, wanted))
        if k == 0:  # the zeros alone reach the percentile, so the range is the first bin
            return cut(low, high, histogram.width)
        threshold = (k - 1 + (wanted - below[k - 1]) / (below[k] - below[k - 1])) * histogram.width
        return cut(low, high, float(threshold))
