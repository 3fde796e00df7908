"""The projection step of ADMM quantization: scale and codes in turn."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from tersor.numerics import QuantSpec
from tersor.observers.base import code_sides, cut, finer_than_bins, needs_codes, seen_range
from tersor.observers.moments import moments_of
from tersor.observers.statistics import Statistics


@dataclass(frozen=True)
class Admm:
    """``q = clip(round(x/α))``, ``α = Σxq / Σq²``, in turn until α is stable: a local minimum of ‖x − αq‖².

    α starts at ``max|x| / (levels · shrink)``; MNN's shrink is 2.5 for features (1.25 for weights), its limit
    300 rounds. If Σq² = 0 it stops and keeps α. This is only the projection step of Leng et al., arXiv 1707.09870; the
    whole method also trains the weights towards αq. With an asymmetric spec the codes are divided between the signs in
    proportion to the extremes. With more codes than bins (int16) the range is that of the extremes.

    >>> import torch
    >>> from tersor.observers import observe
    >>> x = torch.arange(-127.0, 128.0)                   # already on a grid of step 1
    >>> low, high = Admm(shrink=1.0).range(observe(None, x), QuantSpec("int8"))
    >>> round(low), round(high)
    (-127, 127)
    """

    shrink: Annotated[float, Gt(0)] = 2.5
    rounds: Annotated[int, Ge(0)] = 300
    order_dependent = False

    def range(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        """The range; raises CalibrationError for float formats and granularities other than tensor."""
        needs_codes(spec, "admm")
        low, high = seen_range(statistics, spec)
        if low == high or finer_than_bins(spec):
            return low, high
        moments = moments_of(statistics.histogram)
        below, above = code_sides(low, high, spec)
        code = np.arange(-below, above)
        alpha = max(-low, high) / (max(below, above) * self.shrink)
        for _ in range(self.rounds):
            midpoints = (code + 0.5) * alpha
            mass, shortfall = moments.below(midpoints)
            # Summation by parts over the cells: Σ q·x and Σ q² from the moments below each midpoint.
            products = above * moments.first - (midpoints * mass - shortfall).sum()
            squares = above**2 * moments.total - ((2 * code + 1) * mass).sum()
            if squares <= 0:
                break
            before, alpha = alpha, products / squares
            if abs(alpha - before) <= 1e-6 * alpha:
                break
        if spec.symmetric:
            return cut(low, high, float(above * alpha))
        return float(-below * alpha), float(above * alpha)
