"""EasyQuant: scales of the weight and of the input that preserve the direction of the layer's output."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from tersor.numerics import QTensor, QuantSpec, expand, fake_quantize, qparams, quantize, reduce_range
from tersor.solvers.output_error import curve
from tersor.solvers.patches import patches
from tersor.solvers.problem import LayerProblem, LayerSolution, weight_sqnr
from tersor.solvers.rtn import mse_range

_GAIN = 1e-7  # the least growth of the cosine for which a scale moves


@dataclass(frozen=True)
class EasyQuant:
    """EasyQuant (Wu et al., arXiv 2006.16669): maximise the cosine of the float and the quantized output.

    Alternately, the scale of each output channel's weights and the scale of the input take the best value from a
    grid of factors of their initial values, until neither changes. The figure of merit is the mean over
    output channels of the cosine between a channel's outputs before and after. Both steps maximise this
    figure, so it never falls, and the search ends. A channel's scale is chosen by that channel's cosine alone;
    for channels that share a scale (per tensor, groups of filters), the sum of theirs decides. Several
    scales along one row (groups of inputs) move together. The bias is ignored. If the input stays
    float, only the weight's scales are searched.

    Args:
        candidates: points of the grid; with 100 over (0.5, 2), the 34th is the factor 1.
        span: the smallest and the largest factor.
        start: the weight's initial ranges, as in Rtn.
        rows: the number of output positions of the sample that are used.
        rounds: the maximum number of rounds of both steps.
        seed: of the choice of positions, and of stochastic rounding.

    >>> generator = torch.Generator().manual_seed(0)
    >>> weight, x = torch.randn(4, 64, generator=generator) ** 3, torch.randn(256, 64, generator=generator)
    >>> problem = LayerProblem("head", weight, QuantSpec("int2", "channel"), sample=x)
    >>> start = EasyQuant(candidates=1, span=(1, 1))(problem).cosine
    >>> EasyQuant()(problem).cosine > start + 0.01
    True
    """

    candidates: Annotated[int, Ge(1)] = 100
    span: tuple[float, float] = (0.5, 2.0)
    start: Literal["minmax", "mse"] = "minmax"
    rows: Annotated[int, Ge(1)] = 512
    rounds: Annotated[int, Ge(0)] = 8
    seed: int = 0
    needs: ClassVar[tuple[str, ...]] = ("sample",)
    is_range: ClassVar[bool] = True
    input_observer: ClassVar[str] = "kl"  # the entry of OBSERVERS that gives the input's initial range

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        """Quantize the weight; if ``input_spec`` and ``input_range`` are given, choose that range, too.

        Raises:
            CalibrationError: without a sample, or with one that does not fit the layer.
        """
        weight, spec = problem.weight.detach().float(), problem.spec.with_(rounding="nearest")
        x = patches(problem, self.rows, self.seed)
        low, high = reduce_range(weight, spec) if self.start == "minmax" else mse_range(weight, spec)
        search = _Search(x, weight, spec, (low, high), problem.input_spec, problem.input_range)
        grid = torch.linspace(*self.span, self.candidates, dtype=torch.float64).tolist()
        factors, factor = torch.ones(low.shape[0], dtype=torch.float64, device=low.device), 1.0
        best = search.cosines(factors, factor).mean()
        for _ in range(self.rounds):
            before = best
            factors = search.best_weight_factors(factors, factor, grid)
            factor = search.best_input_factor(factors, factor, grid)
            best = search.cosines(factors, factor).mean()
            if best <= before + _GAIN:
                break
        generator = torch.Generator().manual_seed(self.seed)
        qtensor = search.quantized(factors, problem.spec, generator)
        chosen = problem.input_range and (problem.input_range[0] * factor, problem.input_range[1] * factor)
        chosen = chosen if problem.input_spec else None
        return LayerSolution(qtensor, "easyquant", weight_sqnr(weight, qtensor), float(best), chosen)

    def curve(self, problem: LayerProblem, levels: Sequence[str]) -> list[tuple[int, float]]:
        """[(bits, relative squared error)] of each number format of ``levels``."""
        return curve(self, problem, levels)


class _Search:
    """The constants of the search: patches, float outputs, and the initial ranges."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        spec: QuantSpec,
        start: tuple[Tensor, Tensor],
        input_spec: QuantSpec | None,
        input_range: tuple[float, float] | None,
    ) -> None:
        self.x, self.weight, self.spec, (self.low, self.high) = x, weight, spec, start
        self.input_spec, self.input_range = input_spec, input_range
        self.outputs = self._product(x, weight)
        # The index of each output channel's scale.
        count = len(self.low)
        owner = torch.arange(count, device=weight.device).reshape(-1, 1)
        self.owner = expand(owner, (len(weight), 1), spec.block).broadcast_to(len(weight), 1).flatten()

    def quantized(self, factors: Tensor, spec: QuantSpec, generator=None) -> QTensor:
        """The weight with its starting ranges times ``factors``."""
        times = factors.reshape(-1, *[1] * (self.low.ndim - 1))
        scale, zero_point = qparams(self.low * times, self.high * times, spec)
        return QTensor(quantize(self.weight, scale, zero_point, spec, generator), scale, zero_point, spec)

    def inputs(self, factor: float) -> Tensor:
        """The patches, quantized in the input's range times ``factor`` and dequantized."""
        if self.input_spec is None or self.input_range is None:
            return self.x
        low, high = self.input_range
        grid = qparams(low * factor, high * factor, self.input_spec)
        scale, zero_point = (t.to(self.x.device) for t in grid)
        return fake_quantize(self.x, scale, zero_point, self.input_spec)

    def cosines(self, factors: Tensor, factor: float, inputs: Tensor | None = None) -> Tensor:
        """The cosine of each output channel, float64 [out]."""
        x = self.inputs(factor) if inputs is None else inputs
        after = self._product(x, self.quantized(factors, self.spec).dequantize())
        before = self.outputs
        dot = (before * after).sum(1, dtype=torch.float64).flatten()
        norms = [t.square().sum(1, dtype=torch.float64).flatten().sqrt() for t in (before, after)]
        # A channel that is zero both before and after is correct; one that is zero only before or only after is not.
        dead = (norms[0] == 0) & (norms[1] == 0)
        return torch.where(dead, 1.0, dot / (norms[0] * norms[1]).clamp(min=1e-300))

    def best_weight_factors(self, factors: Tensor, factor: float, grid: list[float]) -> Tensor:
        """For every scale of the weight, the factor that gives its channels the largest cosines."""
        inputs = self.inputs(factor)

        def merit(tried: Tensor) -> Tensor:
            return torch.zeros_like(tried).index_add_(0, self.owner, self.cosines(tried, factor, inputs))

        best = factors.clone()
        most = merit(best)
        for value in grid:
            tried = merit(torch.full_like(best, value))
            better = tried > most + _GAIN
            best[better], most[better] = value, tried[better]
        return best

    def best_input_factor(self, factors: Tensor, factor: float, grid: list[float]) -> float:
        """The factor of the input's range with the largest mean cosine."""
        if self.input_spec is None or self.input_range is None:
            return factor
        best, most = factor, self.cosines(factors, factor).mean()
        for value in grid:
            if (tried := self.cosines(factors, value).mean()) > most + _GAIN:
                best, most = value, tried
        return best

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Outputs [groups, rows, out/groups]."""
        return x @ weight.reshape(len(x), -1, x.shape[-1]).transpose(1, 2)
