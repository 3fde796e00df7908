"""GPTQ: columns are rounded in order, and later ones compensate for each rounding error (arXiv 2210.17323)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Interval
from jaxtyping import Float
from torch import Tensor

from tersor.numerics import QTensor, QuantSpec, qparams, quantize, reduce_range
from tersor.numerics.ranges import expand
from tersor.solvers.cholesky import upper_factor
from tersor.solvers.output_error import MEASURED, curve, fitting_cross, fitting_grams, output_errors
from tersor.solvers.problem import LayerProblem, LayerSolution, weight_sqnr
from tersor.solvers.refine import INNER, OUTER, Coded, Rounding, refined, zeroed
from tersor.solvers.rtn import Rtn, columns_per_scale, has_range, mse_range


@dataclass(frozen=True)
class Gptq:
    """GPTQ with the options that helped in measurements.

    Args:
        range: of each scale: ``mse`` clips it to the smallest squared error of the weights, weighted by the
            diagonal of H; ``minmax`` does not clip.
        order: ``activation`` visits the columns by decreasing diag H, ``natural`` in their own order.
        damping: the share of the mean of diag H that is initially added to it.
        refine: sweeps that then move codes, scales and zero points to their optimum given all others; 0 keeps the
            result of the paper's loop. Scales that rows share are kept.
        follow: how far the target weight compensates for the error of earlier layers, which the problem's ``cross``
            holds: 0 keeps the weight itself, 1 gives the least squared error of the output. The idea is GPTAQ's
            (arXiv 2504.02692), applied before rounding instead of during it.

    With groups, scales do not depend on the order of the columns, so the codes can be read without knowing the order.

    >>> x = torch.tensor([[1.0, 0.9], [0.0, 0.1], [2.0, 1.9]])
    >>> gram = (2 * x.T @ x / 3)[None]
    >>> problem = LayerProblem("fc", torch.tensor([[0.34, 0.3, ]]), QuantSpec("int2", "channel"), gram=gram)
    >>> Gptq(range="minmax", refine=1)(problem).method
    'gptq minmax, act-order, refined 1, damping 0.01'
    """

    range: Literal["minmax", "mse"] = "mse"
    order: Literal["activation", "natural"] = "activation"
    damping: Annotated[float, Ge(0)] = 0.01
    refine: Annotated[int, Ge(0)] = 2
    follow: Annotated[float, Interval(ge=0, le=1)] = 0.75
    needs: ClassVar[tuple[str, ...]] = ("gram",)
    wants: ClassVar[tuple[str, ...]] = ("cross",)  # optional fields of LayerProblem that it uses if given

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        """Quantize the weight against its Hessian.

        Raises:
            CalibrationError: without a Gram matrix, or with one that does not fit or cannot be factored.
        """
        spec, parts = problem.spec, self._group_problems(problem)
        target = _joined([p.target for p in parts]).reshape(problem.weight.shape)
        grid = self._grid(replace(problem, weight=target), parts)
        width, free = columns_per_scale(target.shape, spec), _has_own_scales(target.shape, spec)
        # One row of the scale for each group of columns, whatever the granularity.
        scale, zero = (
            expand(t, target.shape, spec.block).expand(target.shape).flatten(1)[:, ::width].t()
            for t in grid
        )
        rounded, found = _rounding(spec), []
        zeros = _zeros(problem).chunk(len(parts))
        for part, s, z, gone in zip(parts, *(t.chunk(len(parts), 1) for t in (scale, zero)), zeros, strict=True):
            # Of a few zeros alone the others need not know: ``ask`` puts them back.
            wanted, gone = part.target.t().contiguous(), gone.t() if gone.float().mean() > FEW else None
            coded = _swept(wanted, Coded(torch.empty_like(wanted), s.clone(), z.clone(), width, gone), part, rounded)
            if self.refine and spec.rounding == "nearest":
                coded = refined(coded, wanted, part.hessian, rounded, self.refine, spec if free else None)
            found.append(coded)
        codes = _joined([c.codes.to(spec.format.dtype).t() for c in found]).reshape(target.shape).contiguous()
        if free:
            moved = (torch.cat([getattr(c, name) for c in found], 1) for name in ("scale", "zero"))
            grid = [t.t().reshape(grid[0].shape) for t in moved]
        return self._solution(problem, target, QTensor(codes, grid[0], grid[1], spec), max(p.damping for p in parts))

    def curve(self, problem: LayerProblem, levels: Sequence[str]) -> list[tuple[int, float]]:
        """[(bits, relative squared error)] of each number format of ``levels``."""
        return curve(self, problem, levels)

    def _group_problems(self, problem: LayerProblem) -> list["_GroupProblem"]:
        grams, cross = fitting_grams(problem), fitting_cross(problem)
        rows = problem.weight.detach().float().flatten(1).chunk(len(grams))
        missing = [None] * len(rows) if cross is None or not self.follow else cross.float().chunk(len(grams))
        parts = []
        for weight, hessian, lost in zip(rows, grams, missing, strict=True):
            dead = hessian.diagonal() == 0
            hessian = hessian.float()
            if dead.any():
                hessian, weight = hessian.clone(), weight.masked_fill(dead, 0.0)
                hessian.diagonal()[dead] = 1
            columns = torch.arange(len(hessian), device=hessian.device)
            if self.order == "activation":
                columns = hessian.diagonal().argsort(descending=True, stable=True)
            factor, damping = upper_factor(hessian, self.damping, problem.name, columns)
            if lost is not None:
                half = torch.linalg.solve_triangular(factor, lost.t()[columns], upper=True)
                change = torch.empty_like(half)
                change[columns] = torch.linalg.solve_triangular(factor.t(), half, upper=False)
                weight = (weight + self.follow * change.t()).masked_fill_(dead, 0.0)
            parts.append(_GroupProblem(weight, hessian, columns, factor, damping))
        return parts

    def _grid(self, problem: LayerProblem, parts: list["_GroupProblem"]) -> Sequence[Tensor]:
        """The initial scale and zero point; the problem's weight is the target."""
        weight, spec = problem.weight, problem.spec
        if not has_range(spec):
            rounded = Rtn("minmax")(problem).qtensor
            return rounded.scale, rounded.zero_point
        if self.range == "minmax":
            return qparams(*reduce_range(weight, spec), spec)
        counts = torch.cat([p.hessian.diagonal().expand(p.target.shape) for p in parts]).reshape(weight.shape)
        return qparams(*mse_range(weight, spec, counts), spec)

    def _solution(self, problem: LayerProblem, target: Tensor, qtensor: QTensor, damping: float) -> LayerSolution:
        weight, grams = problem.weight.detach().float(), fitting_grams(problem)
        # Rows with their own scales can be rounded separately, so only the measured ones are.
        alone = len(grams) == 1 and qtensor.scale.ndim and len(qtensor.scale) == len(weight)
        rows = slice(None, None, -(-len(weight) // MEASURED) if alone else 1)
        ours = qtensor.rows(rows)
        rounded = Rtn("minmax")(replace(problem, weight=weight[rows], gram=None)).qtensor
        error, plain = output_errors(target[rows], [q.dequantize() for q in (ours, rounded)], grams)
        words = [f"gptq {self.range}", "act-order" if self.order == "activation" else "natural order"]
        words += [f"refined {self.refine}"] * bool(self.refine)
        words += [f"following {self.follow:g}"] * (problem.cross is not None and self.follow > 0)
        method = ", ".join([*words, f"damping {damping:g}"])
        noise = weight_sqnr(weight, qtensor)
        return LayerSolution(qtensor, method, noise, None, None, error, plain, damping, problem.tokens)


@dataclass(frozen=True, eq=False)
class _GroupProblem:
    """The inputs for solving one group of a convolution, or the whole of any other layer."""

    target: Float[Tensor, "rows columns"]
    hessian: Float[Tensor, "columns columns"]
    columns: Tensor  # their order
    factor: Float[Tensor, "columns columns"]  # of the damped Hessian in that order
    damping: float


FEW = 0.01
"""The share of zeros in a weight up to which the sweep is that of a dense one."""


def _zeros(problem: LayerProblem) -> Tensor:
    """Weights that are zero, [rows, columns], which stay so where the format has a zero: later ones compensate."""
    flat = problem.weight.detach().flatten(1)
    return torch.zeros_like(flat, dtype=torch.bool) if problem.spec.format.name == "binary" else flat == 0


def _has_own_scales(shape: torch.Size, spec: QuantSpec) -> bool:
    """Whether every row has its own scales, which may be refined."""
    kind, axis = spec.granularity.kind, spec.granularity.axis
    movable = has_range(spec) or spec.format.name == "binary"
    return movable and (kind == "group" or (kind == "channel" and axis in (0, -len(shape))))


def _rounding(spec: QuantSpec) -> Rounding:
    """One column's codes, as float32."""
    if spec.format.kind == "int" and spec.format.name != "binary" and spec.rounding == "nearest":
        return lambda w, step, zero: (w / step).round_().add_(zero).clamp_(spec.low, spec.high)
    generator = torch.Generator().manual_seed(0)
    # Here each weight has its own scale, as if it were a group.
    single = spec.with_(granularity="tensor")
    return lambda w, step, zero: quantize(w, step, zero, single, generator).float()


def _swept(target: Tensor, coded: Coded, part: _GroupProblem, rounded: Rounding) -> Coded:
    """The codes of ``target [columns, rows]`` in the part's order; errors are propagated in blocks of two sizes.

    With H = R·Rᵀ, R upper, the error e costs ‖e·R‖²: column k is rounded after adding Σ e_j·R_jk / R_kk over all j
    before it, which is the paper's loop without the inverse that it needs.
    """
    w, places = target[part.columns], part.columns.tolist()
    step, zero = (coded.of_columns(t, part.columns) for t in (coded.scale, coded.zero))
    reach = part.factor / part.factor.diagonal()
    kept = w.new_empty(OUTER, w.shape[1])
    for a in range(0, len(w), OUTER):
        b = min(a + OUTER, len(w))
        errors = kept[: b - a]
        for c in range(a, b, INNER):
            d = min(c + INNER, b)
            for k in range(c, d):
                value = zeroed(w[k], coded.gone, places[k])
                coded.codes[places[k]] = code = rounded(value, step[k], zero[k])
                torch.addcmul(target[places[k]], code.sub_(zero[k]), step[k], value=-1, out=errors[k - a])
                if k + 1 < d:
                    w[k + 1 : d].addcmul_(reach[k, k + 1 : d, None], errors[k - a])
            if d < b:
                w[d:b].addmm_(reach[c:d, d:b].t(), errors[c - a : d - a])
        if b < len(w):
            w[b:].addmm_(reach[a:b, b:].t(), errors)
    return coded


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts as one tensor; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
