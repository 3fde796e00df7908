"""Weights that are exactly zero have the code of zero, whatever a solver made of them."""

from dataclasses import replace

import torch

from tersor.numerics import QTensor, quantize
from tersor.solvers.problem import LayerProblem, LayerSolution, weight_sqnr


def with_zeros(problem: LayerProblem, solution: LayerSolution) -> LayerSolution:
    """The solution with the code of zero for each weight that is zero; itself if it has them, or the format has none.

    A solver that rounds by the layer's outputs may fill zeros with what compensates for other weights; a pruned network
    would then be as dense as before.

    >>> from tersor.numerics import QuantSpec
    >>> spec, weight = QuantSpec("int4"), torch.tensor([[0.0, 0.7]])
    >>> filled = QTensor(torch.tensor([[1, 7]], dtype=torch.int8), torch.tensor(0.1), torch.tensor(0.0), spec)
    >>> with_zeros(LayerProblem("fc", weight, spec), LayerSolution(filled, "own", 3.0)).qtensor.codes.tolist()
    [[0, 7]]
    """
    weight, found = problem.weight.detach(), solution.qtensor
    zeros = weight == 0
    if not zeros.any():
        return solution
    filled = zeros & (found.dequantize() != 0)
    if not filled.any():
        return solution
    nearest = found.spec.with_(rounding="nearest")
    codes = quantize(torch.zeros_like(weight, dtype=torch.float32), found.scale, found.zero_point, nearest)
    fixed = QTensor(torch.where(filled, codes, found.codes), found.scale, found.zero_point, found.spec)
    if bool((fixed.dequantize()[filled] != 0).any()):
        return solution
    return replace(solution, qtensor=fixed, sqnr_db=weight_sqnr(weight.float(), fixed), output_error=None)
