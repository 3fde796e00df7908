"""The moving average of the batches' extremes."""

from dataclasses import dataclass

from tersor.numerics import QuantSpec
from tersor.observers.base import seen_range
from tersor.observers.statistics import Statistics


@dataclass(frozen=True)
class MovingAverage:
    """``r ← m·r + (1 − m)·batch`` over the batches' minima and maxima, starting with those of the first batch.

    ``observe`` keeps the average; its default m is MNN's 0.99. The range depends on the order and the size of the
    batches, and after a hundred batches the first still has a weight of a third. Jacob et al., arXiv 1712.05877.

    >>> import torch
    >>> from tersor.observers import observe
    >>> s = observe(observe(None, torch.tensor([[1.0]]), momentum=0.5), torch.tensor([[3.0]]), momentum=0.5)
    >>> MovingAverage().range(s, QuantSpec("int8"))
    (0.0, 2.0)
    """

    order_dependent = True

    def range(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """The range; raises CalibrationError for a granularity other than tensor."""
        seen_range(statistics, spec)
        low, high = statistics.ema
        return min(low, 0.0), max(high, 0.0)
