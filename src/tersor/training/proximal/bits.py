"""The projection on a uniform grid of a few bits."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from tersor.numerics import QTensor, QuantSpec, qparams, quantize
from tersor.solvers.rtn import granules, mse_range
from tersor.training.proximal.base import Projection
from tersor.training.proximal.levels import on_levels

# Symmetric grids of up to 4 bits have few levels: their minimum is found exactly.
_FEW = 7


@dataclass(frozen=True)
class Bits(Projection):
    """The nearest ``α·(q − z)`` with integer codes q.

    Symmetric grids of up to 4 bits: the exact minimum of ‖w − αq‖² over α and q, by sorting. Others: codes and scale in
    turn, ``q = clip(round(w/α) + z)``, ``α = Σw(q − z) / Σ(q − z)²``, from the best range that ``Rtn("mse")`` finds.
    Neither step increases the error, so it is a local minimum, never worse than the start (Leng et al., arXiv
    1707.09870). The zero point z is that of the start.

    Args:
        bits: of a code.
        granularity: which weights share an α, as text.
        symmetric: z is 0.
        rounds: the most that codes and scale are found in turn.

    >>> import torch
    >>> Bits(2)(torch.tensor([[0.4, -0.5, 0.05]]))
    tensor([[ 0.4500, -0.4500,  0.0000]])
    >>> weight = torch.linspace(-1, 2, 50).pow(3)
    >>> for rounds in (0, 1, 4):
    ...     print(f"{(Bits(4, 'tensor', symmetric=False, rounds=rounds)(weight) - weight).square().sum():.2f}")
    1.08
    1.02
    1.02
    """

    bits: Literal[2, 3, 4, 8] = 4
    granularity: str = "channel"
    symmetric: bool = True
    rounds: Annotated[int, Ge(0)] = 20

    @property
    def spec(self) -> QuantSpec:
        """Codes of int2, int3, int4 or int8."""
        return QuantSpec(f"int{self.bits}", self.granularity, self.symmetric)

    def refuses(self, spec: QuantSpec) -> str:
        """Integer codes that have negative values hold it."""
        if spec.format.kind != "int":
            return "it needs integer codes"
        return "" if spec.format.signed or not spec.symmetric else "it has no negative values"

    def _nearest(self, weight: Tensor, spec: QuantSpec) -> QTensor:
        if spec.symmetric and spec.high <= _FEW:
            return on_levels(weight, tuple(range(1, spec.high + 1)), spec)
        scale, zero_point = qparams(*mse_range(weight, spec), spec)
        rows, shape = granules(weight.float(), spec), scale.shape
        grid = zero_point.reshape(-1, 1)
        scale = alternate(rows, scale.reshape(-1, 1), grid, spec, self.rounds)
        low, high = ((end - grid.double()) * scale.double() for end in (spec.low, spec.high))
        scale = qparams(low, high, spec)[0].reshape(shape)
        return QTensor(quantize(weight, scale, zero_point, spec), scale, zero_point, spec)


def alternate(rows: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec, rounds: int) -> Tensor:
    """The scale [rows, 1] after ``rounds`` of nearest codes and least squares; each is no worse than the one before."""
    spec = spec.with_(granularity="channel")
    for _ in range(rounds):
        values = quantize(rows, scale, zero_point, spec).float() - zero_point
        power, product = values.square().sum(1, keepdim=True), (values * rows).sum(1, keepdim=True)
        before, scale = scale, torch.where((power > 0) & (product > 0), product / power.clamp(min=1), scale)
        if torch.allclose(before, scale, rtol=1e-6, atol=0):
            break
    return scale
