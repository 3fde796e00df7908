"""One budget for a whole network, divided among its layers by their cost-error curves."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from tersor.errors import RecipeError

Point = tuple[float, float]


def allocate(curves: Mapping[str, Sequence[Point]], budget: float) -> dict[str, int]:
    """The point on every layer's curve that minimizes the sum of errors with the sum of costs within the budget.

    Every curve is replaced by its lower convex hull, and the steps of all hulls are taken by falling gain per cost,
    which is exact for every budget at which a step ends (Everett's generalized Lagrange multipliers, 1963; arXiv
    2208.11580 divides its budgets by dynamic programming). The rest of the budget is spent on single moves that
    still fit, on or off the hulls.

    Args:
        curves: by layer ``[(cost, error)]`` in any order: bits and distortion, or weights kept and loss. Errors are
            added, so they must have the same unit in all layers.
        budget: the limit of the sum of costs, in their unit.

    Returns:
        by layer the index of the point in its curve.

    Raises:
        RecipeError: for a curve without points or with numbers that are not finite, naming the layer, and for a
            budget below the sum of the cheapest points, naming that sum.

    >>> allocate({"a": [(2, 9.0), (4, 1.0), (8, 0.0)], "b": [(2, 3.0), (4, 1.0), (8, 0.0)]}, 10)
    {'a': 1, 'b': 1}
    """
    hulls = {name: _hull(name, curve) for name, curve in curves.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(curves[name][k][0] for name, k in chosen.items())
    # Sums of shares may differ from their total by rounding.
    slack = 1e-9 * max(abs(budget), 1.0)
    if left < -slack:
        raise RecipeError(
            f"the budget {budget:g} is below {budget - left:g}, the least that these {len(curves)} layers cost "
            "together: raise it, or offer the layers cheaper levels"
        )
    steps = [
        ((curves[name][a][1] - curves[name][b][1]) / (curves[name][b][0] - curves[name][a][0]), name, a, b)
        for name, hull in hulls.items()
        for a, b in pairwise(hull)
    ]
    for _, name, a, b in sorted(steps, key=lambda s: -s[0]):  # gains fall along a hull: a layer's steps stay in order
        cost = curves[name][b][0] - curves[name][a][0]
        if chosen[name] == a and cost <= left + slack:
            chosen[name], left = b, left - cost
    while (move := _best_move(curves, chosen, left + slack)) is not None:
        name, k = move
        left -= curves[name][k][0] - curves[name][chosen[name]][0]
        chosen[name] = k
    return chosen


def _hull(name: str, curve: Sequence[Point]) -> list[int]:
    """Indices of the lower convex hull, from the cheapest point to the one of least error."""
    if not curve or not all(math.isfinite(v) for point in curve for v in point):
        raise RecipeError(
            f"layer {name}: its curve {list(curve)} must have points, all of them finite; leave this layer out"
        )
    hull: list[int] = []
    for k in sorted(range(len(curve)), key=lambda k: curve[k]):
        cost, error = curve[k]
        if hull and error >= curve[hull[-1]][1]:
            continue
        while len(hull) > 1:
            (x, y), (u, v) = (curve[h] for h in hull[-2:])
            if (y - v) * (cost - u) >= (v - error) * (u - x):
                break
            hull.pop()
        hull.append(k)
    return hull


def _best_move(curves: Mapping[str, Sequence[Point]], chosen: dict[str, int], left: float) -> tuple[str, int] | None:
    """The change of one layer that fits and reduces the error most, or None."""
    gains = [
        (curve[chosen[name]][1] - error, name, k)
        for name, curve in curves.items()
        for k, (cost, error) in enumerate(curve)
        if cost - curve[chosen[name]][0] <= left and error < curve[chosen[name]][1]
    ]
    return max(gains)[1:] if gains else None


def allocate_bits(
    curves: Mapping[str, Sequence[Point]],
    levels: Sequence[str],
    budget: float,
    sensitivity: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """The level of each layer that minimizes the weighted sum of errors with all layers within the budget.

    Args:
        curves: by layer ``Solver.curve(problem, levels)``, with Gram matrices for all layers or for none.
        levels: names of the number formats of the curves.
        budget: bits of all layers including scales and zero points, for instance 4.5 times the number of weights.
        sensitivity: for every layer the increase of the network's loss per unit of the layer's relative error, at
            least 0. Without it all layers count equally.

    Raises:
        RecipeError: for a curve of other levels, sensitivities that do not fit the layers, and a budget below the cost
            of the cheapest levels.

    >>> curves = {"early": [(2, 0.2), (4, 0.01)], "late": [(2, 0.3), (4, 0.01)]}
    >>> allocate_bits(curves, ["int2", "int4"], 6)
    {'early': 'int2', 'late': 'int4'}
    >>> allocate_bits(curves, ["int2", "int4"], 6, {"early": 10.0, "late": 1.0})
    {'early': 'int4', 'late': 'int2'}
    """
    for name, curve in curves.items():
        if len(curve) != len(levels):
            raise RecipeError(
                f"layer {name}: its curve has {len(curve)} points for the {len(levels)} levels {', '.join(levels)}; "
                "make it of the same levels"
            )
    weights = dict.fromkeys(curves, 1.0) if sensitivity is None else dict(sensitivity)
    if wrong := curves.keys() ^ weights.keys():
        raise RecipeError(
            f"layer {min(wrong)}: it has a curve or a sensitivity, but not both; give one of each for every layer"
        )
    for name, weight in weights.items():
        if not weight >= 0:
            raise RecipeError(f"layer {name}: its sensitivity is {weight}; it must be a number of at least 0")
    weighted = {n: [(cost, weights[n] * error) for cost, error in curve] for n, curve in curves.items()}
    return {name: levels[k] for name, k in allocate(weighted, budget).items()}
