"""Per channel: minimum, maximum, mean and variance, over all batches and positions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Channels:
    """What equalization and bias correction ask of a tensor, one value a channel.

    Attributes:
        count: values a channel.
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
    def mean(self) -> Tensor:
        """float64 ``[channels]``."""
        return self.total / self.count

    @property
    def var(self) -> Tensor:
        """The variance of what was seen (divided by the count), float64 ``[channels]``, never negative."""
        return (self.squares / self.count - self.mean.square()).clamp(min=0.0)

    def merged(self, other: "Channels") -> "Channels | None":
        """Both together; None where the number of channels differs."""
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


def extremes(view: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each row and channel, ``[rows, channels]``; NaN stays NaN."""
    inner = tuple(range(2, view.ndim))
    return view.amin(inner), view.amax(inner)


def channels_of(view: Tensor, low: Tensor, high: Tensor) -> Channels:
    """The statistics of one batch from its view and its ``extremes``."""
    inner = tuple(range(2, view.ndim))
    if view.is_contiguous():  # the norm reads once and writes nothing, but is slow across strides
        squares = torch.linalg.vector_norm(view.flatten(2), dim=2).double().square()
    else:
        squares = view.square().sum(inner).double()
    return Channels(
        view.numel() // view.shape[1],
        low.amin(0).cpu(),
        high.amax(0).cpu(),
        view.sum(inner).double().sum(0).cpu(),
        squares.sum(0).cpu(),
    )
