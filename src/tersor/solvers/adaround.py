"""AdaRound: each weight is rounded up or down, whichever is better for the layer's output (arXiv 2004.10568)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float
from torch import Tensor

from tersor.numerics import QTensor, QuantSpec
from tersor.numerics.ranges import expand
from tersor.solvers.output_error import curve, fitting_grams, output_error
from tersor.solvers.problem import LayerProblem, LayerSolution, weight_sqnr
from tersor.solvers.rtn import Rtn

# The sigmoid is stretched beyond 0 and 1 and then clipped, so that it reaches both.
_LOW, _HIGH = -0.1, 1.1


@dataclass(frozen=True)
class AdaRound:
    """AdaRound on the Gram matrix of the layer's inputs, which determines the squared error of its output.

    Every weight takes the level below or above it, according to a share h in 0 … 1 between them: a rectified sigmoid
    whose logits Adam moves along the gradient of e·H·eᵀ + strength·Σ(1 − |2h − 1|^β). Falling β drives the shares to 0
    and 1. A row worse than with rounding to nearest is rounded to nearest. Rows are independent, and the
    error is in units of the row's step and of mean diag H, so that one strength suits all layers; the paper's 0.01 is
    for an error in other units.

    Args:
        range: of each scale, as in ``Gptq``.
        rounds: steps of Adam; each takes the time of one product of the weight and its Gram matrix.
        rate: of Adam.
        strength: of the regularizer that drives shares to 0 and 1, λ in the paper.
        warmup: the share of rounds without the regularizer.
        beta: the first and the last exponent.

    >>> x = torch.tensor([[1.0, 0.9], [0.0, 0.1], [2.0, 1.9]])
    >>> gram = (2 * x.T @ x / 3)[None]
    >>> problem = LayerProblem("fc", torch.tensor([[0.4, 0.4], [1.0, -1.0]]), QuantSpec("int2", "tensor"), gram=gram)
    >>> [solve(problem).qtensor.codes[0].tolist() for solve in (Rtn("minmax"), AdaRound("minmax"))]
    [[0, 0], [1, 0]]
    """

    range: Literal["minmax", "mse"] = "mse"
    rounds: Annotated[int, Ge(0)] = 500
    rate: Annotated[float, Gt(0)] = 0.1
    strength: Annotated[float, Ge(0)] = 0.3
    warmup: Annotated[float, Interval(ge=0, le=1)] = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        """Quantize the weight; the spec's own rounding is not used.

        Raises:
            CalibrationError: without a Gram matrix, or with one that does not fit.
        """
        grams, spec = fitting_grams(problem), problem.spec
        weight = problem.weight.detach().float()
        grid = Rtn(self.range)(replace(problem, spec=spec.with_(rounding="nearest"))).qtensor
        codes, method = grid.codes, f"adaround {self.range}, {self.rounds} rounds"
        if spec.format.bits > 16:
            method = f"{method}: nearest, {spec.format} is not rounded"
        else:
            steps, zeros = (
                expand(t, weight.shape, spec.block).expand(weight.shape) for t in (grid.scale, grid.zero_point)
            )
            parts = (t.flatten(1).chunk(len(grams)) for t in (weight / steps + zeros, codes.float(), steps))
            levels = _levels(spec).to(weight.device)
            found = [self._solve(y, c, s, h, levels) for y, c, s, h in zip(*parts, grams, strict=True)]
            codes = torch.cat(found).reshape(weight.shape).to(spec.format.dtype)
        qtensor = QTensor(codes, grid.scale, grid.zero_point, spec)
        error = output_error(weight, qtensor.dequantize(), grams)
        return LayerSolution(qtensor, method, weight_sqnr(weight, qtensor), output_error=error)

    def curve(self, problem: LayerProblem, levels: Sequence[str]) -> list[tuple[int, float]]:
        """[(bits, relative squared error)] of each number format of ``levels``."""
        return curve(self, problem, levels)

    def _solve(self, y: Tensor, nearest: Tensor, step: Tensor, hessian: Tensor, levels: Tensor) -> Tensor:
        """The levels that ``y [rows, columns]``, the weight in steps, is rounded to."""
        below = (torch.searchsorted(levels, y.contiguous(), right=True) - 1).clamp(0, len(levels) - 2)
        lower, upper = levels[below], levels[below + 1]
        step = step / step.square().mean(1, keepdim=True).sqrt()
        hessian = hessian.float() / hessian.diagonal().mean().clamp(min=1e-30)
        learned = torch.where(self._upwards(y, lower, upper, step, hessian), upper, lower)
        costs = [((e @ hessian) * e).sum(1, keepdim=True) for e in ((learned - y) * step, (nearest - y) * step)]
        return torch.where(costs[0] < costs[1], learned, nearest)

    def _upwards(self, y: Tensor, lower: Tensor, upper: Tensor, step: Tensor, hessian: Tensor) -> Tensor:
        """Which weights go up."""
        width = upper - lower
        start = ((y - lower) / width).clamp(0, 1)
        logits = -((_HIGH - _LOW) / (start - _LOW) - 1).log()
        mean, power = torch.zeros_like(logits), torch.zeros_like(logits)
        free = int(self.warmup * self.rounds)
        first, last = self.beta
        for k in range(self.rounds):
            s = logits.sigmoid()
            stretched = s * (_HIGH - _LOW) + _LOW
            h = stretched.clamp(0, 1)
            slope = 2 * (((lower + h * width - y) * step) @ hessian) * step * width
            if k >= free:
                beta = first + (last - first) * (k - free) / (self.rounds - free)
                side = 2 * h - 1
                slope -= 2 * self.strength * beta * side.abs().pow(beta - 1) * side.sign()
            slope = torch.where(stretched == h, slope * s * (1 - s), 0.0)
            # Adam is written out, since importing PyTorch's takes seconds.
            mean.lerp_(slope, 0.1)
            power.lerp_(slope.square(), 0.001)
            even = (power / (1 - 0.999 ** (k + 1))).sqrt_().add_(1e-8)
            logits -= self.rate / (1 - 0.9 ** (k + 1)) * mean / even
        return logits > 0


def _levels(spec: QuantSpec) -> Float[Tensor, "levels"]:
    """Every value that a code of at most 16 bits can have, ascending."""
    if spec.format.name == "binary":
        return torch.tensor([-1.0, 1.0])
    if spec.format.kind != "float":
        return torch.arange(float(spec.low), float(spec.high) + 1)
    patterns = torch.arange(2**spec.format.bits, dtype=torch.int32)
    values = patterns.to(torch.uint8 if spec.format.bits == 8 else torch.int16).view(spec.format.dtype).float()
    return values[values.isfinite()].unique()
