"""GPTQ: column by column, each rounding error made up for by the columns still to come (arXiv 2210.17323)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.errors import CalibrationError
from tersor.numerics import QTensor, QuantSpec, quantize
from tersor.numerics.ranges import expand
from tersor.solvers.cholesky import inverse_factor
from tersor.solvers.problem import LayerProblem, LayerSolution, curve, weight_sqnr
from tersor.solvers.rtn import Rtn

# Columns whose updates wait for each other: outer blocks leave the cache, inner ones do not.
_OUTER, _INNER = 128, 16
Rounding = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Gptq:
    """GPTQ with the choices that were seen to help.

    Args:
        range: of each scale: ``mse`` clips it to the smallest squared error of the weights, ``minmax`` does not.
        order: ``activation`` goes through the columns by falling diag H, ``natural`` as they stand.
        damping: the share of the mean of diag H that is added to it at first.

    With groups, scales are those of the weight as it was: no order of the columns is then needed to read the codes.

    >>> x = torch.tensor([[1.0, 0.9], [0.0, 0.1], [2.0, 1.9]])
    >>> gram = (2 * x.T @ x / 3)[None]
    >>> problem = LayerProblem("fc", torch.tensor([[0.34, 0.3, ]]), QuantSpec("int2", "channel"), gram=gram)
    >>> Gptq(range="minmax")(problem).method
    'gptq minmax, act-order, damping 0.01'
    """

    range: Literal["minmax", "mse"] = "mse"
    order: Literal["activation", "natural"] = "activation"
    damping: float = 0.01
    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        """Quantize the weight against its Hessian.

        Raises:
            CalibrationError: without a Gram matrix, or with one that does not fit or cannot be factored.
        """
        weight, spec = problem.weight.detach().float(), problem.spec
        grid = Rtn(self.range)(problem).qtensor
        scale, zero_point = grid.scale, grid.zero_point
        steps, zeros = (expand(t, weight.shape, spec.block).expand(weight.shape) for t in (scale, zero_point))
        grams = fitting_grams(problem)
        codes, damping = [], 0.0
        for part, step, zero, hessian in zip(
            *(t.flatten(1).chunk(len(grams)) for t in (weight, steps, zeros)), grams, strict=True
        ):
            found, used = self._solve(part, step, zero, hessian.float(), _rounding(spec), problem.name)
            codes.append(found)
            damping = max(damping, used)
        qtensor = QTensor(torch.cat(codes).reshape(weight.shape).to(spec.format.dtype), scale, zero_point, spec)
        order = "act-order" if self.order == "activation" else "natural order"
        method = f"gptq {self.range}, {order}, damping {damping:g}"
        error = output_error(weight, qtensor.dequantize(), grams)
        return LayerSolution(qtensor, method, weight_sqnr(weight, qtensor), output_error=error)

    def curve(self, problem: LayerProblem, levels: Sequence[str]) -> list[tuple[int, float]]:
        """[(bits, relative squared error)] of each number format of ``levels``."""
        return curve(self, problem, levels)

    def _solve(
        self, weight: Tensor, step: Tensor, zero: Tensor, hessian: Tensor, rounded: Rounding, name: str
    ) -> tuple[Float[Tensor, "rows columns"], float]:
        dead = hessian.diagonal() == 0
        hessian = hessian.clone()
        hessian.diagonal()[dead] = 1
        weight = weight.masked_fill(dead, 0.0)
        columns = torch.arange(len(hessian))
        if self.order == "activation":
            columns = hessian.diagonal().argsort(descending=True, stable=True)
        factor, damping = inverse_factor(hessian[columns][:, columns], self.damping, name)
        # Columns become rows, which are contiguous.
        w, s, z = (t[:, columns].t().contiguous() for t in (weight, step, zero))
        codes = _sweep(w, s, z, factor, rounded)
        found = torch.empty_like(codes)
        found[columns] = codes
        return found.t(), damping


def _rounding(spec: QuantSpec) -> Rounding:
    """One column's codes, as float32."""
    if spec.format.kind == "int" and spec.format.name != "binary" and spec.rounding == "nearest":
        return lambda w, step, zero: (w / step).round_().add_(zero).clamp_(spec.low, spec.high)
    generator = torch.Generator().manual_seed(0)
    # Each weight has its own scale here, as if it were a group.
    single = spec.with_(granularity="tensor")
    return lambda w, step, zero: quantize(w, step, zero, single, generator).float()


def _sweep(w: Tensor, step: Tensor, zero: Tensor, factor: Tensor, rounded: Rounding) -> Tensor:
    """The codes of ``w [columns, rows]``, which is used up; errors reach on in blocks of two sizes."""
    count = len(w)
    codes, errors = torch.empty_like(w), torch.empty_like(w)
    for a in range(0, count, _OUTER):
        b = min(a + _OUTER, count)
        for c in range(a, b, _INNER):
            d = min(c + _INNER, b)
            for k in range(c, d):
                codes[k] = code = rounded(w[k], step[k], zero[k])
                errors[k] = (w[k] - (code - zero[k]) * step[k]) / factor[k, k]
                if k + 1 < d:
                    w[k + 1 : d] -= factor[k, k + 1 : d, None] * errors[k]
            if d < b:
                w[d:b] -= factor[c:d, d:b].t() @ errors[c:d]
        if b < count:
            w[b:] -= factor[a:b, b:].t() @ errors[a:b]
    return codes


def fitting_grams(problem: LayerProblem) -> Float[Tensor, "groups columns columns"]:
    """The problem's Gram matrices.

    Raises:
        CalibrationError: where there are none, or of another size than the weight's columns.
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


def output_error(weight: Tensor, found: Tensor, grams: Float[Tensor, "groups columns columns"]) -> float:
    """tr(E·H·Eᵀ) / tr(W·H·Wᵀ): the share of the layer's output that the error is, in power.

    >>> weight, found = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    >>> output_error(weight, found, torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]))
    0.5
    """
    power = [0.0, 0.0]
    for w, f, h in zip(weight.flatten(1).chunk(len(grams)), found.flatten(1).chunk(len(grams)), grams, strict=True):
        for k, t in enumerate((f - w, w)):
            power[k] += float(((t @ h.float()) * t).sum(dtype=torch.float64))
    return power[0] / power[1] if power[1] else 0.0
