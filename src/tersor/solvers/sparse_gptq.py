"""Prune and quantize in one sweep, in which later columns compensate for both errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from tersor.errors import RecipeError
from tersor.numerics import QTensor, QuantSpec, quantize
from tersor.numerics.ranges import expand
from tersor.solvers.output_error import curve, fitting_grams, output_error
from tersor.solvers.problem import LayerProblem, LayerSolution, weight_sqnr
from tersor.solvers.prune import factored, prune_columns
from tersor.solvers.rtn import Rtn
from tersor.solvers.sparsity import Sparsity, columns_first


@dataclass(frozen=True)
class SparseGptq:
    """SparseGPT that rounds the weights it keeps in the same sweep (arXiv 2301.00774, section 3.5).

    Later columns compensate for both errors, which two sweeps in sequence could not. Codes of removed weights
    dequantize to exactly 0.

    Args:
        sparsity: the share and pattern of zeros, or its text.
        range: of each scale, as in ``Gptq``.
        damping: the share of the mean of diag H that is initially added to it.

    >>> x = torch.tensor([[1.0, 0.9], [0.0, 0.1], [2.0, 1.9]])
    >>> problem = LayerProblem("fc", torch.tensor([[0.1, 0.8]]), QuantSpec("int4"), gram=(2 * x.T @ x / 3)[None])
    >>> solution = SparseGptq("1:2", "minmax")(problem)
    >>> solution.qtensor.codes.tolist(), solution.method
    ([[0, 7]], 'sparsegptq 1:2 minmax, damping 0.01')
    """

    sparsity: Sparsity | str = "50%"
    range: Literal["minmax", "mse"] = "mse"
    damping: Annotated[float, Ge(0)] = 0.01
    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        """Prune and quantize the weight.

        Raises:
            RecipeError: for an impossible sparsity, or a number format without a zero (binary).
            CalibrationError: without a Gram matrix, or with one that does not fit or cannot be factored.
        """
        sparsity = Sparsity.parse(self.sparsity) if isinstance(self.sparsity, str) else self.sparsity
        weight, spec = problem.weight.detach().float(), problem.spec
        sparsity.check(problem.name, weight.shape[1])
        if spec.format.name == "binary":
            raise RecipeError(f"layer {problem.name}: binary has no code for 0, so nothing can be sparse; use ternary")
        grid = Rtn(self.range)(problem).qtensor
        shape = weight.shape
        step, zero = (expand(t, shape, spec.block).expand(shape) for t in (grid.scale, grid.zero_point))
        (flat, order), (step, _), (zero, _) = (columns_first(t) for t in (weight, step, zero))
        grams = fitting_grams(problem)
        parts, damping = [], 0.0
        for w, s, z, hessian in zip(*(t.chunk(len(grams)) for t in (flat, step, zero)), grams, strict=True):
            factor, w, used = factored(w, hessian.float()[order][:, order], self.damping, problem.name)
            parts.append(prune_columns(w, factor, sparsity, _rounding(s, z, spec)))
            damping = max(damping, used)
        # The values are already on the grid, so rounding to nearest returns their codes.
        nearest = spec.with_(granularity="tensor", rounding="nearest")
        codes = torch.empty_like(flat, dtype=spec.format.dtype)
        codes[:, order] = quantize(torch.cat(parts), step, zero, nearest)
        qtensor = QTensor(codes.reshape(shape), grid.scale, grid.zero_point, spec)
        error = output_error(weight, qtensor.dequantize(), grams)
        method = f"sparsegptq {sparsity} {self.range}, damping {damping:g}"
        return LayerSolution(qtensor, method, weight_sqnr(weight, qtensor), output_error=error)

    def curve(self, problem: LayerProblem, levels: Sequence[str]) -> list[tuple[int, float]]:
        """[(bits, relative squared error)] of each number format of ``levels``."""
        return curve(self, problem, levels)


def _rounding(step: Tensor, zero: Tensor, spec: QuantSpec) -> Callable[[Tensor, int], Tensor]:
    """The values of one column on its grid."""
    single = spec.with_(granularity="tensor")  # each weight has its own scale here
    generator = torch.Generator().manual_seed(0)

    def rounded(values: Tensor, k: int) -> Tensor:
        codes = quantize(values, step[:, k], zero[:, k], single, generator)
        return (codes.float() - zero[:, k]) * step[:, k]

    return rounded
