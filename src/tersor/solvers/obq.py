"""Optimal Brain Quantizer: one weight at a time, the one whose rounding costs least (arXiv 2208.11580)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from tersor.numerics import QTensor, quantize
from tersor.numerics.ranges import expand
from tersor.solvers.obs import eliminate, inverse
from tersor.solvers.output_error import curve, fitting_grams, output_error
from tersor.solvers.problem import LayerProblem, LayerSolution, weight_sqnr
from tersor.solvers.rtn import Rtn


@dataclass(frozen=True)
class Obq:
    """OBQ: more accurate than GPTQ on small layers, and cubic in the columns for every row.

    Args:
        range: of each scale, as in ``Gptq``.
        damping: the share of the mean of diag H that is initially added to it.
    """

    range: Literal["minmax", "mse"] = "mse"
    damping: Annotated[float, Ge(0)] = 0.01
    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        """Quantize the weight; raises as ``Gptq`` does."""
        grams, spec = fitting_grams(problem), problem.spec
        weight = problem.weight.detach().float()
        grid = Rtn(self.range)(problem).qtensor
        steps, zeros = (expand(t, weight.shape, spec.block).expand(weight.shape) for t in (grid.scale, grid.zero_point))
        codes, damping = [], 0.0
        for w, step, zero, hessian in zip(
            *(t.flatten(1).chunk(len(grams)) for t in (weight, steps, zeros)), grams, strict=True
        ):
            found, used = inverse(hessian, self.damping, problem.name)
            single = spec.with_(granularity="tensor")
            generator = torch.Generator().manual_seed(0)

            def rounded(x: Tensor, own: Tensor, s: Tensor = step, z: Tensor = zero) -> Tensor:
                # Each value is rounded with its own scale.
                return (quantize(x, s[own], z[own], single, generator).float() - z[own]) * s[own]  # noqa: B023

            def outlying(error: Tensor, own: Tensor, s: Tensor = step) -> Tensor:
                return error.abs() > (0.5 + 1e-4) * s[own]  # beyond the grid's ends, where errors only grow

            w = w.masked_fill(hessian.diagonal() == 0, 0.0)
            fixed = eliminate(w.contiguous(), found, w.shape[1], rounded, first=outlying).weight
            codes.append(quantize(fixed, step, zero, single, generator))
            damping = max(damping, used)
        qtensor = QTensor(torch.cat(codes).reshape(weight.shape), grid.scale, grid.zero_point, spec)
        error = output_error(weight, qtensor.dequantize(), grams)
        method = f"obq {self.range}, damping {damping:g}"
        return LayerSolution(qtensor, method, weight_sqnr(weight, qtensor), output_error=error, damping=damping)

    def curve(self, problem: LayerProblem, levels: Sequence[str]) -> list[tuple[int, float]]:
        """[(bits, relative squared error)] of each number format of ``levels``."""
        return curve(self, problem, levels)
