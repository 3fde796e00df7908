"""The protocol of range estimators, and the checks that they share."""

from typing import Protocol, runtime_checkable

from tersor.errors import CalibrationError
from tersor.numerics import QuantSpec
from tersor.observers.histogram import BINS
from tersor.observers.statistics import Statistics


@runtime_checkable
class Observer(Protocol):
    """A range estimator: a frozen dataclass of its options with one method."""

    @property
    def order_dependent(self) -> bool:
        """Whether the range depends on the order and the size of the batches."""
        ...

    def range(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """The range ``(low, high)`` to quantize the tensor in, ``low ≤ 0 ≤ high``.

        Raises:
            CalibrationError: for a spec that this estimator does not support.
        """
        ...


def seen_range(statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
    """The extremes, widened to include 0: the zero point of one-sided data would otherwise lie outside the codes.

    Raises:
        CalibrationError: unless ``spec`` has one scale for the whole tensor.
    """
    if spec.granularity.kind != "tensor":
        raise CalibrationError(
            f"an activation has one calibrated range, and {spec.format.name} per {spec.granularity} needs several: use "
            "granularity tensor, or `range: dynamic`, which computes scales at every call"
        )
    return min(statistics.min, 0.0), max(statistics.max, 0.0)


def needs_codes(spec: QuantSpec, name: str) -> None:
    """Reject formats whose codes are not evenly spaced integers including zero.

    Raises:
        CalibrationError: naming the format.
    """
    if spec.format.kind != "int":
        raise CalibrationError(
            f"{name} chooses ranges for integer codes, {spec.format.name} has none: use minmax, ema or "
            "percentile"
        )


def finer_than_bins(spec: QuantSpec) -> bool:
    """Whether the format has more codes than the histogram has bins (int16), so that clipping cannot be evaluated."""
    return spec.high - spec.low >= BINS


def cut(low: float, high: float, threshold: float) -> tuple[float, float]:
    """``(low, high)`` inside ±threshold.

    >>> cut(-0.5, 6.0, 4.0)
    (-0.5, 4.0)
    """
    return max(low, -threshold), min(high, threshold)


def code_sides(low: float, high: float, spec: QuantSpec) -> tuple[int, int]:
    """The numbers of codes below and above that of 0, for a range.

    >>> code_sides(-1.0, 3.0, QuantSpec("int8")), code_sides(0.0, 3.0, QuantSpec("uint8"))
    ((127, 127), (0, 255))
    >>> code_sides(-1.0, 4.0, QuantSpec("uint8", symmetric=False))
    (51, 204)
    """
    if spec.symmetric or low == high:
        return -spec.low, spec.high
    codes = spec.high - spec.low
    below = round(codes * -low / (high - low))
    return below, codes - below
