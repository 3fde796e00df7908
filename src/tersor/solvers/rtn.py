"""Round to nearest: every weight to the nearest code, over a range that may clip."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.numerics import QTensor, QuantSpec, qparams, quantize, reduce_range
from tersor.numerics.qtensor import quantize_tensor
from tersor.solvers.output_error import curve
from tersor.solvers.problem import LayerProblem, LayerSolution, weight_sqnr

_COARSE = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_STEPS = (0.05, 0.025, 0.0125, 0.00625)
_DENSE = tuple(k / 200 for k in range(199, 19, -1))
# The error of few weights jumps with the range; that of many is smooth, so a coarse search finds its minimum.
_FEW = 128
# Elements processed at once: on a CPU their intermediates stay in its cache, elsewhere each call has to be worth it.
_CACHED, _MANY = 2**16, 2**24


@dataclass(frozen=True)
class Rtn:
    """Round to nearest.

    ``range="minmax"`` spans minimum and maximum (Krishnamoorthi, arXiv 1806.08342). ``range="mse"`` shrinks
    this range, for each scale by its own factor in 0.1 … 1, to the smallest squared error of the
    weights: a few large weights are clipped, and all others get a finer grid (Banner et al., arXiv 1810.05723, who
    assume a distribution instead of searching). It is never worse than minmax in squared error. Formats without a
    range to choose (binary, whose level is a mean, and floats of 16 and 32 bits) ignore it.

    Args:
        range: how the range of each scale is found.
        seed: of stochastic rounding, where the spec asks for it.

    >>> weight = torch.tensor([[0.1, 0.2, -0.3, 2.0]])
    >>> Rtn("minmax")(LayerProblem("head", weight, QuantSpec("int4", "channel"))).qtensor.codes.tolist()
    [[0, 1, -1, 7]]
    """

    range: Literal["minmax", "mse"] = "mse"
    seed: int = 0
    needs: ClassVar[tuple[str, ...]] = ()
    by_row: ClassVar[bool] = True  # codes of an output with its own scale depend only on its weights

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        """Quantize the weight; raises NumericsError for NaN or a scale that cannot be stored."""
        weight, spec = problem.weight.detach(), problem.spec
        generator = torch.Generator().manual_seed(self.seed) if spec.rounding == "stochastic" else None
        if self.range == "minmax" or not has_range(spec):
            qtensor = quantize_tensor(weight, spec, generator=generator)
        else:
            low, high = mse_range(weight, spec)
            scale, zero_point = qparams(low, high, spec)
            qtensor = QTensor(quantize(weight, scale, zero_point, spec, generator), scale, zero_point, spec)
        return LayerSolution(qtensor, f"rtn {self.range}", weight_sqnr(weight, qtensor))

    def curve(self, problem: LayerProblem, levels: Sequence[str]) -> list[tuple[int, float]]:
        """[(bits, relative squared error)] of each number format of ``levels``."""
        return curve(self, problem, levels)


def mse_range(
    x: Float[Tensor, "..."], spec: QuantSpec, importance: Float[Tensor, "..."] | None = None
) -> tuple[Tensor, Tensor]:
    """The shrunken range (low, high) of the smallest squared error, in the scale's shape.

    ``importance``, in the shape of ``x``, weights each element's squared error.
    """
    low, high = reduce_range(x, spec)
    shape = low.shape
    rows = granules(x.float(), spec)
    low, high = low.reshape(-1, 1).clamp(max=0.0), high.reshape(-1, 1).clamp(min=0.0)
    per_row = spec.with_(granularity="channel", rounding="nearest")
    counted = None if importance is None else granules(importance.float(), spec)
    best = torch.ones_like(low)
    least = squared_error(rows, low, high, per_row, counted)
    # A tie goes to the wider range, including differences too small for float32 sums.
    least *= 1 - 1e-5

    def attempt(ratio: Tensor) -> None:
        error = squared_error(rows, low * ratio, high * ratio, per_row, counted)
        better = error < least
        best[better], least[better] = ratio[better], error[better]

    # Solvers that weight elements by importance refine the codes further, so a coarse search is enough for them.
    for ratio in _DENSE if rows.shape[1] <= _FEW and counted is None else _COARSE:
        attempt(torch.full_like(best, ratio))
    for step in _STEPS:
        centre = best.clone()
        attempt((centre - step).clamp(min=0.05))
        attempt((centre + step).clamp(max=1.0))
    return (low * best).reshape(shape), (high * best).reshape(shape)


def squared_error(
    rows: Tensor, low: Tensor, high: Tensor, spec: QuantSpec, importance: Tensor | None = None
) -> Float[Tensor, "..."]:
    """Sum of squared errors of each row quantized over its own range, [rows, 1]; ``spec`` is per channel."""
    scale, zero_point = qparams(low, high, spec)
    bottom, top = spec.low - zero_point, spec.high - zero_point
    columns = min(rows.shape[1], together(rows))
    step = max(1, together(rows) // columns)
    errors = torch.zeros_like(scale)
    for k in range(0, len(rows), step):
        chosen = slice(k, k + step)
        for first, part in zip(range(0, rows.shape[1], columns), rows[chosen].split(columns, dim=1), strict=True):
            y = part / scale[chosen]
            if spec.format.kind == "float":
                q = y.clamp(spec.low, spec.high).to(spec.format.dtype).float()
            elif spec.symmetric:
                q = y.round().clamp_(spec.low, spec.high)
            else:
                q = torch.clamp(y.round(), bottom[chosen], top[chosen])
            q.sub_(y).square_()
            if importance is not None:
                q *= importance[chosen, first : first + columns]
            errors[chosen] += q.sum(dim=1, keepdim=True)
    return errors * scale.square()


def together(x: Tensor) -> int:
    """The number of elements to process at once on the device of ``x``."""
    return _CACHED if x.device.type == "cpu" else _MANY


def granules(x: Float[Tensor, "..."], spec: QuantSpec) -> Float[Tensor, "..."]:
    """``x`` as [scales, members]; a partial last group is padded with zeros, which have no error."""
    kind, size = spec.granularity.kind, spec.granularity.size
    if kind == "tensor":
        return x.reshape(1, -1)
    if kind == "token":
        return x.reshape(-1, x.shape[-1])
    if kind == "channel":
        return x.movedim(spec.granularity.axis, 0).flatten(1) if x.ndim > 1 else x.reshape(-1, 1)
    dim = 0 if kind == "filters" else 1
    missing = -x.shape[dim] % size
    if missing:
        x = torch.cat([x, x.new_zeros([*x.shape[:dim], missing, *x.shape[dim + 1 :]])], dim)
    # Groups of inputs: one row for each output and group. Groups of filters: one for each group.
    return x.unflatten(dim, (-1, size)).flatten(0, dim).flatten(1)


def columns_per_scale(shape: torch.Size, spec: QuantSpec) -> int:
    """The number of neighbouring columns in a row of the flattened weight ``[out, columns]`` that share a scale.

    >>> columns_per_scale(torch.Size([8, 6, 3, 3]), QuantSpec("int4", "group:3"))
    27
    """
    kind, columns = spec.granularity.kind, shape[1:].numel()
    if kind == "group":
        return spec.block * columns // shape[1]
    if kind == "channel" and spec.granularity.axis not in (0, -len(shape)):
        return 1
    return shape[-1] if kind == "token" else columns


def has_range(spec: QuantSpec) -> bool:
    """Whether there is a range to choose: not for binary, whose level is a mean, nor for floats of 16 bits and more."""
    return spec.format.name != "binary" and not (spec.format.kind == "float" and spec.format.bits > 8)
