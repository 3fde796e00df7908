"""Per channel: minimum, maximum, mean and variance, over all batches and positions."""

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 2**17  # elements that stay in the cache between passes; measured
_WIDE = 64  # neighbours per step of a minimum over another dimension; thirty times faster than sixteen


@dataclass(frozen=True, eq=False)
class Channels:
    """The statistics for equalization and bias correction, one value for each channel.

    Attributes:
        count: values in each channel.
        min, max: float32 ``[channels]``, exact.
        total, squares: float64 ``[channels]``, Σx and Σx² over every value. Each sample's sum is taken in
            float32, so the variance of a channel whose mean is a thousand times its deviation is noise.
    """

    count: int
    min: Tensor
    max: Tensor
    total: Tensor
    squares: Tensor

    @property
    def magnitude(self) -> Tensor:
        """The largest |x|, float32 ``[channels]``, exact."""
        return torch.maximum(self.max.abs(), self.min.abs())

    @property
    def mean(self) -> Tensor:
        """float64 ``[channels]``."""
        return self.total / self.count

    @property
    def var(self) -> Tensor:
        """The variance (divided by the count), float64 ``[channels]``, never negative."""
        return (self.squares / self.count - self.mean.square()).clamp(min=0.0)

    def merged(self, other: "Channels") -> "Channels | None":
        """Both together; None if the numbers of channels differ."""
        if self.min.shape != other.min.shape:
            return None
        return Channels(
            self.count + other.count,
            torch.minimum(self.min, other.min),
            torch.maximum(self.max, other.max),
            self.total + other.total,
            self.squares + other.squares,
        )


def by_channel(x: Tensor, axis: int | None) -> Tensor:
    """``x`` as a view ``[rows, channels, positions...]``; the rows are dimension 0.

    Without a channel axis (None, or one that x does not have) there is one channel. With axis 0, or in one
    dimension or none, the tensor is one row.
    """
    if x.ndim == 0:
        return x.reshape(1, 1, 1)
    present = axis is not None and -x.ndim <= axis < x.ndim
    axis = axis % x.ndim if axis is not None and present else None
    if axis == 0:
        return x.reshape(1, x.shape[0], -1)
    if x.ndim == 1:
        return x.reshape(1, 1, -1)
    if axis is None:
        return x.unsqueeze(1)
    view = x.movedim(axis, 1)
    return view.unsqueeze(-1) if view.ndim == 2 else view


@dataclass(frozen=True, eq=False)
class Reduced:
    """One batch, reduced over positions; each float32 ``[rows, channels]``. NaN stays NaN."""

    low: Tensor
    high: Tensor
    total: Tensor
    squares: Tensor


def reduced(view: Tensor) -> Reduced:
    """The four sums and extremes of each row and channel of a ``by_channel`` view."""
    if not view.is_contiguous():
        last = view.movedim(1, -1)
        if last.is_contiguous():
            return _reduced_columns(last.flatten(1, -2))
        inner = tuple(range(2, view.ndim))
        return Reduced(view.amin(inner), view.amax(inner), view.sum(inner), view.square().sum(inner))
    flat = view.flatten(0, 1).flatten(1)
    # Four passes over a chunk that stays in the cache instead of four over all of it; the norm reads once and
    # writes nothing.
    chunks = [
        (chunk.amin(1), chunk.amax(1), chunk.sum(1), torch.linalg.vector_norm(chunk, dim=1))
        for chunk in flat.split(max(1, _CHUNK // flat.shape[1]))
    ]
    low, high, total, norm = (torch.cat(parts).reshape(view.shape[:2]) for parts in zip(*chunks, strict=True))
    return Reduced(low, high, total, norm.square())


def _reduced_columns(x: Tensor) -> Reduced:
    """The same of ``[rows, positions, channels]``."""
    rows, positions, channels = x.shape
    # Reducing by few channels is slow: several positions are first laid side by side.
    width = channels * _divisor(positions, -(-_WIDE // channels))
    steps = positions * channels // width
    wide = x.reshape(-1, steps // _divisor(steps, -(-steps * width // _CHUNK)), width)
    chunks = [
        (chunk.amin(1), chunk.amax(1), chunk.sum(1), chunk.square().sum(1))
        for chunk in wide.split(max(1, _CHUNK // wide[0].numel()))
    ]
    low, high, total, squares = (torch.cat(parts).reshape(rows, -1, channels) for parts in zip(*chunks, strict=True))
    return Reduced(low.amin(1), high.amax(1), total.sum(1), squares.sum(1))


def _divisor(n: int, least: int) -> int:
    """The smallest divisor of ``n`` that is at least ``least``, or ``n``.

    >>> _divisor(12, 5), _divisor(7, 2), _divisor(3, 9)
    (6, 7, 3)
    """
    return next((d for d in range(least, n) if n % d == 0), n)


def channels_of(parts: Reduced, count: int) -> Channels:
    """The statistics of one batch; ``count`` values a channel."""
    return Channels(
        count,
        parts.low.amin(0).cpu(),
        parts.high.amax(0).cpu(),
        parts.total.sum(0, dtype=torch.float64).cpu(),
        parts.squares.sum(0, dtype=torch.float64).cpu(),
    )
