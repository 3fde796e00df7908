"""The statistics of one tensor from one streaming pass, which can be merged."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tersor.errors import CalibrationError
from tersor.observers.channels import Channels, by_channel, channels_of, reduced
from tersor.observers.histogram import BINS, Histogram, histogram_of
from tersor.observers.moments import power_mean
from tersor.observers.sample import Fingerprints, Sample, fingerprints_of, sample_of, strided

_STRETCHES = 16  # resolution of the range over time


@dataclass(frozen=True)
class Stretch:
    """The extremes of some consecutive rows."""

    rows: int
    low: float
    high: float

    def joined(self, other: "Stretch") -> "Stretch":
        """This stretch and the next as one."""
        return Stretch(self.rows + other.rows, min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True, eq=False)
class Statistics:
    """Everything that the estimators need to know about one tensor. Its size does not depend on the number of batches.

    A row is one index of dimension 0 (a tensor of one dimension or none is one row). Extremes, channels and
    counts are exact; the histogram counts at most ``per_row`` values of every row, evenly spread.
    ``merge`` is associative, and independent of the order except for ``first``, ``ema`` and ``course``:
    merge shards in the order of the data. Sums over channels agree up to float64 rounding.

    Attributes:
        count: values seen. rows, batches: rows and batches seen, empty ones not counted.
        min, max: the extremes.
        first: extremes of the first batch.
        ema: moving average of the batches' extremes, ``r ← m·r + (1 − m)·batch``, from the first batch on.
        momentum: its m; MNN's is 0.99.
        histogram: see Histogram; zeros are counted separately.
        per_row: the maximum number of values of a row that the histogram counts.
        channels: per channel minimum, maximum, mean and variance; None if a tensor had no such axis or the
            number of channels changed between batches.
        course: extremes of up to 16 consecutive stretches of rows, for the assessment.
        fingerprints: which rows repeat. sample: some whole rows, None unless requested.
    """

    count: int
    rows: int
    batches: int
    min: float
    max: float
    first: tuple[float, float]
    ema: tuple[float, float]
    momentum: float
    histogram: Histogram
    per_row: int
    channels: Channels | None
    course: tuple[Stretch, ...]
    fingerprints: Fingerprints
    sample: Sample | None = None

    @property
    def halves(self) -> tuple[Stretch, Stretch] | None:
        """The extremes of the first and the second half of the rows; None if there is only one stretch."""
        if len(self.course) < 2:
            return None
        first, *rest = self.course
        while len(rest) > 1 and first.rows + rest[0].rows / 2 <= self.rows / 2:
            first = first.joined(rest.pop(0))
        second = rest[0]
        for stretch in rest[1:]:
            second = second.joined(stretch)
        return first, second

    @property
    def kurtosis(self) -> float | None:
        """E(x − μ)⁴ / σ⁴ over all values: 3 for a Gaussian, higher for heavier tails; None for a constant.

        The fourth power is the histogram's; mean and variance are exact if channels were collected, because one
        outlier can squeeze all other values into a bin.
        """
        if self.max <= self.min:
            return None
        first, second = (power_mean(self.histogram, k) for k in (1, 2))
        if self.channels is not None:
            first = float(self.channels.total.sum()) / self.count
            second = float(self.channels.squares.sum()) / self.count
        variance = second - first**2
        return power_mean(self.histogram, 4, first) / variance**2 if variance > 0 else None

    def to_dict(self, bins: int = 128) -> dict[str, Any]:
        """Plain values for a JSON report; the histogram on at most ``bins`` equal bins from min to max."""
        return {
            "count": self.count,
            "rows": self.rows,
            "batches": self.batches,
            "min": self.min,
            "max": self.max,
            "ema": list(self.ema),
            "histogram": _drawn(self, bins),
        }


def observe(
    statistics: Statistics | None,
    x: Tensor,
    *,
    channel_axis: int | None = 1,
    momentum: float = 0.99,
    per_row: int = 2**18,
    keep: int = 0,
    seed: int = 0,
) -> Statistics | None:
    """``statistics`` (None at the start) after one more batch ``x``, of any shape and real dtype.

    Args:
        statistics: the statistics so far, with the same options.
        x: ``[rows, ...]``. Integers and booleans are taken as float32. An empty one changes nothing.
        channel_axis: the dimension of the channels, or None for no per-channel statistics.
        momentum: of the moving average.
        per_row: the maximum number of values of a row that the histogram counts; minimum and maximum see all.
        keep: how many whole rows to keep in ``sample``. seed: which ones.

    Raises:
        CalibrationError: NaN, infinite or complex values; options that differ from those of earlier batches.
            The message names no layer: the caller, who knows it, adds it.

    >>> import torch
    >>> s = None
    >>> for batch in (torch.tensor([[0.0, 1.0]]), torch.tensor([[-2.0, 4.0]])):
    ...     s = observe(s, batch)
    >>> s.min, s.max, s.batches, s.channels.mean.tolist()
    (-2.0, 4.0, 2, [-1.0, 2.5])
    """
    if x.numel() == 0:
        return statistics
    if x.is_complex():
        raise CalibrationError(f"complex values ({x.dtype}) have no range: split off the imaginary part")
    x = x.detach().float()
    view = by_channel(x, channel_axis)
    parts = reduced(view)
    smallest, largest = float(parts.low.min()), float(parts.high.max())
    if not abs(smallest) + abs(largest) < float("inf"):
        _refuse(x)
    flat = _rows(view)
    part = strided(flat, per_row).cpu().contiguous()
    has_channels = channel_axis is not None and -x.ndim <= channel_axis < x.ndim
    batch = Statistics(
        count=x.numel(),
        rows=view.shape[0],
        batches=1,
        min=smallest,
        max=largest,
        first=(smallest, largest),
        ema=(smallest, largest),
        momentum=momentum,
        histogram=histogram_of(part, max(-smallest, largest), signed=smallest < 0),
        per_row=per_row,
        channels=channels_of(parts, x.numel() // view.shape[1]) if has_channels else None,
        course=_course(parts.low.amin(1), parts.high.amax(1)),
        fingerprints=fingerprints_of(part),
        sample=sample_of(x.reshape(view.shape[0], *x.shape[1:]), keep, seed) if keep else None,
    )
    return batch if statistics is None else merge(statistics, batch)


def merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of a's stream followed by b's.

    Raises CalibrationError if the two were collected with different options.

    >>> import torch
    >>> halves = [observe(None, torch.full((1, 3), value)) for value in (1.0, 2.0)]
    >>> merge(*halves).channels.mean.tolist()
    [1.5, 1.5, 1.5]
    """
    for option in ("momentum", "per_row"):
        if getattr(a, option) != getattr(b, option):
            raise CalibrationError(
                f"statistics gathered with {option} {getattr(a, option)} and {getattr(b, option)} "
                "cannot be merged: gather both with the same"
            )
    # b's average started at b.first with weight 1; continued from a's, that weight belongs to a's and decays.
    decay = a.momentum**b.batches
    return replace(
        a,
        count=a.count + b.count,
        rows=a.rows + b.rows,
        batches=a.batches + b.batches,
        min=min(a.min, b.min),
        max=max(a.max, b.max),
        ema=(
            b.ema[0] + decay * (a.ema[0] - b.first[0]),
            b.ema[1] + decay * (a.ema[1] - b.first[1]),
        ),
        histogram=a.histogram.merged(b.histogram),
        channels=a.channels.merged(b.channels) if a.channels and b.channels else None,
        course=_shortened(a.course + b.course),
        fingerprints=a.fingerprints.merged(b.fingerprints),
        sample=a.sample.merged(b.sample) if a.sample and b.sample else None,
    )


def same_batch(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of one batch that was seen in two parts.

    >>> import torch
    >>> whole = same_batch(*(observe(None, torch.full((1, 3), value)) for value in (1.0, 2.0)))
    >>> whole.batches, whole.ema
    (1, (1.0, 2.0))
    """
    both = merge(a, b)
    extremes = (both.min, both.max)
    return replace(both, batches=1, first=extremes, ema=extremes)


def _refuse(x: Tensor) -> None:
    nan, infinite = int(x.isnan().sum()), int(x.isinf().sum())
    raise CalibrationError(
        f"{nan} NaN and {infinite} infinite of {x.numel()} values in a tensor of shape {tuple(x.shape)}: "
        "look for bad samples in the calibration data, or for an overflow in the network"
    )


def _rows(view: Tensor) -> Tensor:
    """``[rows, n]`` in memory order, so that non-contiguous layouts need no copy either."""
    inner = sorted(range(1, view.ndim), key=lambda d: -view.stride(d))
    return view.permute(0, *inner).reshape(view.shape[0], -1)


def _course(low: Tensor, high: Tensor) -> tuple[Stretch, ...]:
    """One batch as two stretches, so that even a single batch has two halves."""
    middle = (len(low) + 1) // 2
    parts = zip(low.split(middle), high.split(middle), strict=True)
    return tuple(Stretch(len(a), float(a.min()), float(b.max())) for a, b in parts)


def _shortened(course: tuple[Stretch, ...]) -> tuple[Stretch, ...]:
    """At most 16 stretches: the shortest neighbours are joined first, so all stay about equally long."""
    parts = list(course)
    while len(parts) > _STRETCHES:
        i = min(range(len(parts) - 1), key=lambda k: parts[k].rows + parts[k + 1].rows)
        parts[i : i + 2] = [parts[i].joined(parts[i + 1])]
    return tuple(parts)


def _drawn(statistics: Statistics, bins: int) -> dict[str, Any]:
    """The part of the histogram between min and max, its bins joined to at most ``bins``."""
    h = statistics.histogram
    used = h.counts.nonzero()[0]
    start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (BINS, BINS + 1)
    ratio = -(-(stop - start) // bins)
    counts = [int(h.counts[i : min(i + ratio, stop)].sum()) for i in range(start, stop, ratio)]
    return {"low": (start - BINS) * h.width, "width": ratio * h.width, "counts": counts, "zeros": h.zeros}
