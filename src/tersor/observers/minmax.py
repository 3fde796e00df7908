"""The minimum and maximum as the range."""

from dataclasses import dataclass

from tersor.numerics import QuantSpec
from tersor.observers.base import seen_range
from tersor.observers.statistics import Statistics


@dataclass(frozen=True)
class MinMax:
    """The range ``[min(x, 0), max(x, 0)]``: nothing is clipped. Krishnamoorthi, arXiv 1806.08342.

    >>> import torch
    >>> from tersor.observers import observe
    >>> MinMax().range(observe(None, torch.tensor([[2.5, 3.5]])), QuantSpec("uint8", symmetric=False))
    (0.0, 3.5)
    """

    order_dependent = False

    def range(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """The range; raises CalibrationError for a granularity other than tensor."""
        return seen_range(statistics, spec)
