"""Integrals over a histogram, which give the exact errors of many quantizers at once."""

from dataclasses import dataclass

import numpy as np

from tersor.observers.histogram import BINS, Histogram


@dataclass(frozen=True, eq=False)
class Moments:
    """A histogram as a density that is constant inside each bin, with its integrals up to any point.

    Attributes:
        origin: where the first bin begins. width: of a bin.
        density: counts a unit, float64 ``[bins + 1]``, 0 in the last.
        mass: values below each edge, ``[bins + 1]``.
        shortfall: ``∫ (edge − x)`` over what lies below each edge, ``[bins + 1]``.
        total, first, second: the sums of 1, x and x² over all.
    """

    origin: float
    width: float
    density: np.ndarray
    mass: np.ndarray
    shortfall: np.ndarray
    total: float
    first: float
    second: float

    def _place(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.clip((points - self.origin) / self.width, 0, len(self.mass) - 1)
        index = at.astype(np.int32)
        # Past the last edge the mass is constant and the shortfall keeps growing: the distance is not clipped there.
        return index, points - (self.origin + index * self.width)

    def below(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of values below each point, and the sum of their distances to it."""
        index, past = self._place(points)
        past = np.maximum(past, 0.0)
        density, mass = self.density[index], self.mass[index]
        return mass + density * past, self.shortfall[index] + (mass + 0.5 * density * past) * past


def moments_of(histogram: Histogram, magnitudes: bool = False) -> Moments:
    """The integrals of x, or of |x|. Exact zeros are omitted: no quantizer has an error on them."""
    counts = (histogram.magnitudes if magnitudes else histogram.counts).astype(np.float64)
    used = np.flatnonzero(counts)
    begin, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    counts, width = counts[begin:end], histogram.width
    origin = (begin - (0 if magnitudes else BINS)) * width
    mass = np.concatenate(([0.0], np.cumsum(counts)))
    shortfall = np.concatenate(([0.0], np.cumsum((mass[:-1] + 0.5 * counts) * width)))
    left = origin + np.arange(len(counts)) * width
    return Moments(
        origin,
        width,
        np.append(counts / width, 0.0),
        mass,
        shortfall,
        float(mass[-1]),
        float(counts @ (left + 0.5 * width)),
        float(counts @ (left * (left + width) + width**2 / 3)),
    )


def power_mean(histogram: Histogram, power: int, centre: float = 0.0) -> float:
    """The mean of (x − centre) to a whole power over all values, zeros included; inside a bin they are uniform.

    >>> import torch
    >>> from tersor.observers.histogram import histogram_of
    >>> round(power_mean(histogram_of(torch.tensor([0.0, 1.0, -3.0]), 3.0), 2), 2)
    3.33
    """
    used = np.flatnonzero(histogram.counts)
    left = (used - BINS) * histogram.width - centre
    # ∫ tᵖ over the bin, divided by its width: the sum of products of its two ends' powers.
    inside = sum((left + histogram.width) ** k * left ** (power - k) for k in range(power + 1)) / (power + 1)
    total = histogram.counts[used] @ inside + histogram.zeros * (-centre) ** power
    return float(total / histogram.total)


def grid_error(
    moments: Moments, scale: np.ndarray, below: np.ndarray | int, above: np.ndarray | int
) -> np.ndarray:
    """Σ (x − q(x))² of the grids ``{−below … above} · scale``, one for each entry of ``scale``.

    With levels ``l`` a step ``s`` apart and the midpoints e between them, summing by parts leaves
    ``Σ (x − l_top)² − 2s · Σ_e ∫_{x<e} (e − x)``: one look-up for each midpoint, none for each bin.
    ``below + above`` must be the same for all.

    >>> import torch
    >>> from tersor.observers.histogram import histogram_of
    >>> m = moments_of(histogram_of(torch.tensor([0.5, 1.0, 1.0, 2.0]), 2.0))
    >>> grid_error(m, np.array([1.0]), 0, 2).round(2)      # 0.5 is the only one that is no level
    array([0.25])
    """
    scale = np.atleast_1d(np.asarray(scale, dtype=np.float64))
    above = np.broadcast_to(above, scale.shape)
    steps = int(np.max(below + above))
    midpoints = (above[:, None] - steps + 0.5 + np.arange(steps)) * scale[:, None]
    top = above * scale
    _, shortfall = moments.below(midpoints)
    error = moments.second - 2 * top * moments.first + top**2 * moments.total - 2 * scale * shortfall.sum(1)
    return np.maximum(error, 0.0)
