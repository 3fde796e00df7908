"""Every range estimator side by side, for one tensor."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tersor.errors import TersorError
from tersor.numerics import QuantSpec, qparams, quantize_tensor
from tersor.observers.base import Observer
from tersor.observers.histogram import Histogram
from tersor.observers.moments import grid_error, moments_of
from tersor.observers.statistics import Statistics


@dataclass(frozen=True)
class Estimate:
    """The range of one estimator and its error.

    Attributes:
        observer: its name.
        low, high: its range; None if it supports no such spec, for the reason in ``note``.
        mse: mean of (x − q(x))² over the histogram, zeros included, in the unit of x squared.
        sqnr_db: 10·log10 of mean x² over mse; None if either is 0.
        clipped: the share of values outside the range; values in a bin with an end of the range count as inside.
    """

    observer: str
    low: float | None = None
    high: float | None = None
    mse: float | None = None
    sqnr_db: float | None = None
    clipped: float | None = None
    note: str = ""


def compare(statistics: Statistics, spec: QuantSpec, observers: Mapping[str, Observer]) -> list[Estimate]:
    """One row for each of ``observers`` (usually OBSERVERS), in their order.

    >>> from tersor.observers import OBSERVERS, observe
    >>> x = torch.linspace(-1, 1, 10_000)
    >>> x[0] = -3.0
    >>> rows = {row.observer: row for row in compare(observe(None, x), QuantSpec("int4"), OBSERVERS)}
    >>> rows["mse"].sqnr_db > rows["minmax"].sqnr_db + 6
    True
    """
    return [_estimate(name, observer, statistics, spec) for name, observer in observers.items()]


def range_error(statistics: Statistics, spec: QuantSpec, low: float, high: float) -> float:
    """The mean of (x − q(x))² of a range, over the histogram, zeros included."""
    scale, zero_point = qparams(low, high, spec)
    histogram = statistics.histogram
    if spec.format.kind != "int":
        return _cast_error(histogram, spec, low, high)
    below, above = int(zero_point) - spec.low, spec.high - int(zero_point)
    return (
        float(grid_error(moments_of(histogram), np.array([float(scale)]), below, above)[0]) / histogram.total
    )


def relative_error(statistics: Statistics, spec: QuantSpec, low: float, high: float) -> float:
    """``range_error`` over the mean of x²; 0 if all values are zero."""
    power = moments_of(statistics.histogram).second / statistics.histogram.total
    return range_error(statistics, spec, low, high) / power if power > 0 else 0.0


def _cast_error(histogram: Histogram, spec: QuantSpec, low: float, high: float) -> float:
    """The error of floats and levels, whose grids are not uniform: at the middle of each bin."""
    used = np.flatnonzero(histogram.counts)
    middle = (histogram.edges[used] + histogram.width / 2).clip(low, high)
    quantized = (
        quantize_tensor(torch.from_numpy(middle).float(), spec, low, high).dequantize().double().numpy()
    )
    return float(histogram.counts[used] @ (middle - quantized) ** 2) / histogram.total


def _estimate(name: str, observer: Observer, statistics: Statistics, spec: QuantSpec) -> Estimate:
    try:
        low, high = observer.range(statistics, spec)
        mse = range_error(statistics, spec, low, high)
    except TersorError as error:
        return Estimate(name, note=str(error))
    moments = moments_of(statistics.histogram)
    total = statistics.histogram.total
    power = moments.second / total
    clipped = _outside(statistics, low, high) / total
    decibels = 10 * math.log10(power / mse) if power > 0 and mse > 0 else None
    return Estimate(name, low, high, mse, decibels, clipped)


def _outside(statistics: Statistics, low: float, high: float) -> int:
    """How many values lie outside [low, high], in whole bins: values equal to an end are inside, exact zeros too."""
    histogram = statistics.histogram
    left, counts = histogram.edges[:-1], histogram.counts
    # A bin does not include its right edge, so a bin that ends at ``low`` lies entirely below it.
    return int(counts[left + histogram.width <= low].sum() + counts[left > high].sum())
