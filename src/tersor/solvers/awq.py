"""AWQ's clipping: each range is shrunk to minimize the error of the layer's outputs (arXiv 2306.00978)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Interval
from jaxtyping import Float
from torch import Tensor

from tersor.numerics import QuantSpec, expand, quantize_tensor, reduce_range
from tersor.solvers.output_error import curve, fitting_grams
from tersor.solvers.problem import LayerProblem, LayerSolution, weight_sqnr
from tersor.solvers.rtn import Rtn, columns_per_scale, has_range


@dataclass(frozen=True)
class Awq:
    """Round to nearest, with the range for each scale that changes the layer's output least.

    Each range is shrunk to 1, …, ``least`` of itself in ``steps``; the error is that of the output, caused by the
    weights of one scale alone. AWQ omits the query and key projections. Formats without a range are rounded to nearest.
    The other half of AWQ, scales of input channels, is ``awq: true`` of a recipe.

    Args:
        steps: number of ranges tried for each scale.
        least: the smallest share of a range, above 0 and at most 1.
        seed: of stochastic rounding, where the spec asks for it.

    >>> weight, x = torch.tensor([[1.0, 1.0, 1.0, 8.0]]), torch.tensor([1.0, 1.0, 1.0, 0.01])
    >>> problem = LayerProblem("fc", weight, QuantSpec("int4", "channel"), gram=2 * torch.outer(x, x)[None])
    >>> Awq()(problem).qtensor.dequantize().tolist()
    [[1.0, 1.0, 1.0, 7.0]]
    """

    steps: Annotated[int, Ge(1)] = 20
    least: Annotated[float, Interval(gt=0, le=1)] = 0.5
    seed: int = 0
    needs: ClassVar[tuple[str, ...]] = ("gram",)
    is_range: ClassVar[bool] = True

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        """Quantize the weight.

        Raises:
            CalibrationError: without a Gram matrix, or with one that does not fit.
        """
        grams, weight = fitting_grams(problem), problem.weight.detach().float()
        bounded = clipped(weight, grams, problem.spec, self.steps, self.least) if has_range(problem.spec) else weight
        solution = Rtn("minmax", self.seed)(replace(problem, weight=bounded))
        sqnr = weight_sqnr(weight, solution.qtensor)
        return replace(solution, method="rtn, clipped for the outputs", sqnr_db=sqnr)

    def curve(self, problem: LayerProblem, levels: Sequence[str]) -> list[tuple[int, float]]:
        """[(bits, relative squared error)] of each number format of ``levels``."""
        return curve(self, problem, levels)


def clipped(
    weight: Float[Tensor, "..."],
    grams: Float[Tensor, "groups columns columns"],
    spec: QuantSpec,
    steps: int = 20,
    least: float = 0.5,
) -> Float[Tensor, "..."]:
    """The weight within the best range of each scale; ``grams`` are those of a LayerProblem.

    >>> weight, x = torch.tensor([[1.0, 1.0, 1.0, 8.0]]), torch.tensor([1.0, 1.0, 1.0, 0.01])
    >>> clipped(weight, 2 * torch.outer(x, x)[None], QuantSpec("int4", "channel"))
    tensor([[1., 1., 1., 7.]])
    """
    low, high = reduce_range(weight, spec)
    if spec.symmetric:  # the grid spans both sides equally
        high = torch.maximum(low.abs(), high.abs())
        low = -high
    nearest, columns = spec.with_(rounding="nearest"), weight[0].numel()
    width = columns_per_scale(weight.shape, spec)
    # The index of the scale of every ``width`` columns of a row.
    owner = torch.arange(low.numel(), device=low.device).reshape(low.shape)
    owner = expand(owner, weight.shape, spec.block).expand(weight.shape).flatten(1)[:, ::width]
    blocks = [slice(k, k + width) for k in range(0, columns, width)]
    ratio, least_error = torch.ones_like(low), torch.full_like(low, torch.inf)
    for k in range(steps):
        tried = 1 - (1 - least) * k / steps
        off = weight - quantize_tensor(weight, nearest, low * tried, high * tried).dequantize()
        errors = torch.cat(
            [
                torch.stack([((d[:, b] @ h[b, b]) * d[:, b]).sum(1) for b in blocks], 1)
                for d, h in zip(off.flatten(1).chunk(len(grams)), grams, strict=True)
            ]
        )
        error = errors.new_zeros(low.numel()).index_add_(0, owner.flatten(), errors.flatten()).reshape(low.shape)
        better = error < least_error
        ratio[better], least_error[better] = tried, error[better]
    low, high = (expand(bound * ratio, weight.shape, spec.block) for bound in (low, high))
    return weight.clamp(low, high)

