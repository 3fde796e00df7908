"""Weights that stay float while training, pulled towards a quantized set, and are projected on it when deployed."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tersor.errors import NumericsError, RecipeError
from tersor.numerics import QTensor
from tersor.tables import Named, made, name_of
from tersor.training.proximal import PROXIMAL, Projection
from tersor.training.quantizers.base import Quantizer, Start
from tersor.training.quantizers.lsq import Lsq


@dataclass(frozen=True)
class Projected:
    """For ADMM (arXiv 1707.09870): the loss sees float weights, which the optimizer pulls towards ``set``.

    In eval mode, and when deployed, the weight is the nearest one in the set. Use it with the option ``proximal`` of
    the step `train`; alone it is training without quantization, and rounding at the end.

    >>> from tersor.numerics import QuantSpec
    >>> weight, one = torch.tensor([[3.0, -1.0, 0.1]]), torch.ones(1, 1)
    >>> quantizer = Projected()(Start("w", QuantSpec("ternary", "channel"), one, 0 * one, weight))
    >>> quantizer.train()(weight).tolist()[0][:2], quantizer.eval()(weight).tolist()
    ([3.0, -1.0], [[3.0, 0.0, 0.0]])
    """

    set: Named = "ternary"
    others: Literal["refuse", "lsq"] = "refuse"
    kinds: ClassVar[frozenset[str]] = frozenset({"int", "ternary", "binary"})
    roles: ClassVar[frozenset[str]] = frozenset({"weight"})

    def __call__(self, start: Start) -> Quantizer:
        projection = made(PROXIMAL, self.set, "set")
        if not isinstance(projection, Projection):
            raise RecipeError(f"{start.name}: {name_of(self.set)} is no quantized set")
        if self.others == "lsq" and projection.spec.format != start.spec.format:
            return Lsq()(start)
        if reason := projection.refuses(start.spec):
            raise RecipeError(f"{start.name}: the set {name_of(self.set)} cannot be stored as {start.spec}: {reason}")
        return ProjectedWeight(start, projection)


class ProjectedWeight(Quantizer):
    """A quantizer that is the identity while training."""

    def __init__(self, start: Start, projection: Projection) -> None:
        super().__init__(start)
        self.projection = projection

    @property
    def rounds(self) -> bool:
        """False: sets have no finer grid, and the weight is float while training."""
        return False

    def grid(self, x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """That of the nearest weight in the set."""
        found = self.qtensor(x, factor)
        return found.scale, found.zero_point

    def quantized(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """``x`` itself while training; the nearest weight in the set otherwise."""
        return x if self.training else self.qtensor(x, factor).dequantize().to(x.dtype)

    def qtensor(self, x: Tensor, factor: Tensor | None = None) -> QTensor:
        """The codes of the nearest weight in the set; scales per output follow a folded BatchNorm by themselves."""
        try:
            with torch.no_grad():
                return self.projection.qtensor(x.float(), self.spec)
        except NumericsError as error:
            raise NumericsError(f"{self.name}: {error}") from error
