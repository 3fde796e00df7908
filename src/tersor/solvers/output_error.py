"""The effect of an error in a weight on its layer's output, from the Gram matrix of the layer's inputs."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.errors import CalibrationError
from tersor.numerics import FORMATS
from tersor.solvers.problem import LayerProblem, LayerSolution, Solver

# Rows on which an error is measured: more hardly change it, and each costs a product with the Hessian.
MEASURED = 512


def fitting_grams(problem: LayerProblem) -> Float[Tensor, "groups columns columns"]:
    """The problem's Gram matrices.

    Raises:
        CalibrationError: if there are none, or they do not match the weight's columns.
    """
    problem.require(("gram",))
    grams, columns, groups = problem.gram, problem.weight[0].numel(), problem.geometry.groups
    assert grams is not None
    if grams.shape != (groups, columns, columns):
        raise CalibrationError(
            f"layer {problem.name}: Gram matrices of shape {tuple(grams.shape)} do not fit a weight of shape "
            f"{tuple(problem.weight.shape)} in {groups} groups; they must be {(groups, columns, columns)}"
        )
    return grams


def fitting_cross(problem: LayerProblem) -> Float[Tensor, "out columns"] | None:
    """The problem's ``cross``, or None.

    Raises:
        CalibrationError: if its shape differs from the weight's.
    """
    shape = problem.weight.flatten(1).shape
    if problem.cross is not None and problem.cross.shape != shape:
        raise CalibrationError(
            f"layer {problem.name}: cross of shape {tuple(problem.cross.shape)} does not fit a weight of shape "
            f"{tuple(problem.weight.shape)}; it must be {tuple(shape)}, one row an output, as 2·mean((y − W·x)·xᵀ) is"
        )
    return problem.cross


def output_error(weight: Tensor, found: Tensor, grams: Float[Tensor, "groups columns columns"]) -> float:
    """tr(E·H·Eᵀ) / tr(W·H·Wᵀ): power of the output's error over that of the output.

    It is measured on at most 512 evenly spaced rows.

    >>> weight, found = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    >>> output_error(weight, found, torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]))
    0.5
    """
    return output_errors(weight, [found], grams)[0]


def output_errors(
    weight: Tensor, found: Sequence[Tensor], grams: Float[Tensor, "groups columns columns"]
) -> list[float]:
    """``output_error`` of each of ``found``."""
    power = [0.0] * (1 + len(found))
    for k, hessian in enumerate(grams.float()):
        parts = [t.flatten(1).chunk(len(grams))[k] for t in (weight, *found)]
        w, *others = (t[:: -(-len(t) // MEASURED)] for t in parts)
        for j, t in enumerate((w, *(f - w for f in others))):
            power[j] += float(((t @ hessian) * t).sum(dtype=torch.float64))
    # If H has low rank, a sum of 0 may be rounded to slightly below 0.
    return [max(p, 0.0) / power[0] if power[0] > 0 else 0.0 for p in power[1:]]


def measured_error(problem: LayerProblem, solution: LayerSolution) -> float | None:
    """The solution's output error, measured here if the solver did not; None without a Gram matrix."""
    if solution.output_error is not None or problem.gram is None:
        return solution.output_error
    return output_error(problem.weight.detach().float(), solution.qtensor.dequantize(), fitting_grams(problem))


def curve(solver: Solver, problem: LayerProblem, levels: Sequence[str]) -> list[tuple[int, float]]:
    """The cost and the error of each number format of ``levels``, for ``allocate_bits``.

    Returns (bits in a file, error) in the order of ``levels``. The error is the power of the output's error over that
    of the output if the problem has a Gram matrix, else that of the weight's error over that of the weight; the two
    cannot be compared.
    """
    points = []
    for level in levels:
        solution = solver(replace(problem, spec=problem.spec.with_(format=FORMATS[level])))
        error = measured_error(problem, solution)
        points.append((8 * solution.qtensor.nbytes, 10 ** (-solution.sqnr_db / 10) if error is None else error))
    return points
