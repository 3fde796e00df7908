"""HQQ: scales that fit most weights and sacrifice outliers, without data (Badri and Shaji 2023, half-quadratic)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from tersor.numerics import QTensor, QuantSpec, qparams, quantize
from tersor.solvers.output_error import curve
from tersor.solvers.problem import LayerProblem, LayerSolution, weight_sqnr
from tersor.solvers.rtn import Rtn, granules, has_range, together

_TINY = 1e-8


@dataclass(frozen=True)
class Hqq:
    """Half-quadratic quantization: it minimizes the sum of |w − ŵ|^norm, which tolerates outliers for a norm below 1.

    Alternately, outlying errors are separated by the norm's shrinkage (Badri and Shaji, "Half-Quadratic Quantization of
    Large Machine Learning Models", 2023), and the grid is fitted to the remaining ones by least squares. The original
    moves only the zero point, as a fraction; zero points here are integers, which the mean rounding error of less than
    half a step never moves, so the scale is fitted instead. Each scale keeps the best of all rounds, as it will be
    stored: in this norm it is never worse than its start. Everything is in units of the step: scaling a weight scales
    its solution. Formats without a range are rounded to nearest.

    Args:
        norm: the exponent, above 0 and at most 1.
        start: the initial scales, those of ``Rtn(range=start)``.
        strength: β; the larger, the less is separated in the first round. ``growth``: its factor from round to round.
        rounds: of both steps.
        seed: of stochastic rounding, where the spec asks for it.

    >>> weight = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0)).prod(0)
    >>> problem = LayerProblem("fc", weight, QuantSpec("uint2", "channel", symmetric=False))
    >>> for solver in (Rtn("minmax"), Rtn("mse"), Hqq()):
    ...     error = solver(problem).qtensor.dequantize() - weight
    ...     print(f"{error.abs().pow(0.7).mean():.2f} {error.square().mean():.2f}")
    0.45 0.22
    0.38 0.15
    0.37 0.16
    """

    norm: Annotated[float, Interval(gt=0, le=1)] = 0.7
    start: Literal["minmax", "mse"] = "mse"
    strength: Annotated[float, Gt(0)] = 1.0
    growth: Annotated[float, Gt(0)] = 1.05
    rounds: Annotated[int, Ge(0)] = 20
    seed: int = 0
    needs: ClassVar[tuple[str, ...]] = ()
    by_row: ClassVar[bool] = True

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        """Quantize the weight; raises NumericsError for NaN or a scale that cannot be stored."""
        weight, spec = problem.weight.detach(), problem.spec
        method = f"hqq {self.start}, norm {self.norm:g}"
        solution = Rtn(self.start, self.seed)(problem)
        if not has_range(spec):
            return replace(solution, method=f"{method}: nearest, {spec.format} has no range")
        scale, zero_point = solution.qtensor.scale, solution.qtensor.zero_point
        rows = granules(weight.float(), spec)
        step = max(1, together(rows) // rows.shape[1])
        parts = zip(*(t.split(step) for t in (rows, scale.reshape(-1, 1), zero_point.reshape(-1, 1))), strict=True)
        per_row = spec.with_(granularity="channel", rounding="nearest")
        scale = torch.cat([self._fitted(r, s, z, per_row) for r, s, z in parts]).reshape(scale.shape)
        generator = torch.Generator().manual_seed(self.seed) if spec.rounding == "stochastic" else None
        qtensor = QTensor(quantize(weight, scale, zero_point, spec, generator), scale, zero_point, spec)
        return LayerSolution(qtensor, method, weight_sqnr(weight, qtensor))

    def curve(self, problem: LayerProblem, levels: Sequence[str]) -> list[tuple[int, float]]:
        """[(bits, relative squared error)] of each number format of ``levels``."""
        return curve(self, problem, levels)

    def _fitted(self, rows: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
        """The best scale [rows, 1] of each row."""
        start = best = scale
        least, strength = torch.full_like(scale, torch.inf), self.strength
        for _ in range(self.rounds + 1):
            values = quantize(rows, scale, zero_point, spec).float() - zero_point
            error = rows / scale - values
            size = error.abs()
            lost = size.pow(self.norm).sum(1, keepdim=True) * (scale / start) ** self.norm
            best, least = torch.where(lost < least, scale, best), torch.minimum(lost, least)
            outlying = (size - size.clamp(min=_TINY).pow(self.norm - 1) / strength).clamp(min=0).copysign(error)
            power = values.square().sum(1, keepdim=True)
            gain = (values * (rows / scale - outlying)).sum(1, keepdim=True) / power
            scale = _stored(torch.where((power > 0) & (gain > 0), gain, 1.0) * scale, zero_point, spec)
            strength *= self.growth
        return best


def _stored(scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """The scale as a file stores it."""
    low, high = ((end - zero_point.double()) * scale.double() for end in (spec.low, spec.high))
    return qparams(low, high, spec)[0]
