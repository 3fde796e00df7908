"""A number format for each layer, within the bits that the whole network may take."""

from collections.abc import Mapping, Sequence

from tersor.errors import RecipeError
from tersor.solvers.budget import Point, allocate


def allocate_bits(
    curves: Mapping[str, Sequence[Point]],
    levels: Sequence[str],
    budget: float,
    sensitivity: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """The level of each layer so that the weighted sum of errors is least and all layers fit into the budget.

    Args:
        curves: by layer ``Solver.curve(problem, levels)``; of all layers from Gram matrices, or of all without.
        levels: names of number formats, those that the curves were made of.
        budget: bits of all layers together, scales and zero points counted: 4.5 times the weights for instance.
        sensitivity: what a layer's relative error costs the network, one number of at least 0 for every layer: the
            loss that one unit of it brings. Without it each layer counts the same.

    Raises:
        RecipeError: for a curve that is not one of these levels, sensitivities that do not fit the layers, and a
            budget below what the cheapest levels take.

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
