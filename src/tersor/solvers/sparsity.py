"""The number and pattern of weights to remove, the result, and the protocol of pruners."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tersor.errors import RecipeError
from tersor.solvers.problem import LayerProblem


@dataclass(frozen=True)
class Sparsity:
    """The share of a layer's weights to make zero, and their pattern.

    Args:
        share: of the weights that become zero, 0 … 1.
        pattern: ``layer`` removes them anywhere in the layer, ``row`` the same number from every output, ``n:m`` keeps
            n of every m neighbouring inputs (input channels of a convolution).
        group: (n, m) of that pattern.

    >>> Sparsity.parse("50%"), Sparsity.parse("70% per row").pattern, Sparsity.parse("2:4").group
    (Sparsity(share=0.5, pattern='layer', group=None), 'row', (2, 4))
    """

    share: float
    pattern: str = "layer"
    group: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str) -> "Sparsity":
        """``"50%"``, ``"50% per row"`` or ``"2:4"``.

        Raises:
            RecipeError: for anything else.
        """
        if found := re.fullmatch(r"(\d+):(\d+)", text):
            keep, size = int(found[1]), int(found[2])
            if 0 < keep < size:
                return cls(1 - keep / size, "n:m", (keep, size))
        elif found := re.fullmatch(r"(\d+(?:\.\d+)?)%( per row)?", text):
            share = float(found[1]) / 100
            if 0 <= share < 1:
                return cls(share, "row" if found[2] else "layer")
        raise RecipeError(f"sparsity {text!r} is none of `50%`, `50% per row`, `2:4` (2 of every 4 are kept)")

    def __str__(self) -> str:
        if self.group is not None:
            return f"{self.group[0]}:{self.group[1]}"
        return f"{100 * self.share:g}%{' per row' if self.pattern == 'row' else ''}"

    def check(self, name: str, columns: int) -> None:
        """Reject groups that do not divide the inputs.

        Raises:
            RecipeError: naming the layer.
        """
        if self.group is not None and columns % self.group[1]:
            raise RecipeError(
                f"layer {name}: {columns} inputs are no multiple of {self.group[1]}, which {self.group[0]}:"
                f"{self.group[1]} needs; leave this layer out by a rule"
            )

    def kept(self, scores: Float[Tensor, "rows columns"]) -> Bool[Tensor, "rows columns"]:
        """A mask of the highest scores, as many as are kept; among equal scores the first ones."""
        rows, columns = scores.shape
        if self.group is not None:
            keep, size = self.group
            parts = scores.reshape(rows, columns // size, size)
            return _highest(parts, keep).reshape(rows, columns)
        if self.pattern == "row":
            return _highest(scores, columns - round(self.share * columns))
        flat = scores.reshape(1, -1)
        return _highest(flat, flat.shape[1] - round(self.share * flat.shape[1])).reshape(rows, columns)


def _highest(scores: Tensor, count: int) -> Tensor:
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


@dataclass(frozen=True)
class PrunedLayer:
    """A weight with zeros, and its error.

    Args:
        weight: in its original shape; the removed ones are exactly zero.
        method: as shown in the report.
        output_error: power of the output's error over that of the output, by the Gram matrix.
    """

    weight: Tensor
    method: str
    output_error: float | None

    @property
    def sparsity(self) -> float:
        """The share of the weights that are zero."""
        return float((self.weight == 0).float().mean())


@runtime_checkable
class Pruner(Protocol):
    """A frozen dataclass of options that makes weights of a layer zero."""

    needs: ClassVar[tuple[str, ...]]  # the fields of LayerProblem that must be given

    def __call__(self, problem: LayerProblem, sparsity: Sparsity) -> PrunedLayer: ...

    def curve(self, problem: LayerProblem, shares: Sequence[float]) -> list[tuple[int, float]]:
        """[(weights kept, output error)] for each share of zeros."""
        ...


def columns_first(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as ``[out, kernel · in]`` with neighbouring inputs side by side, and the former place of each column.

    >>> columns_first(torch.zeros(2, 3, 1, 2))[1].tolist()
    [0, 2, 4, 1, 3, 5]
    """
    count = weight[0].numel()
    order = torch.arange(count, device=weight.device).reshape(weight.shape[1:])
    order = order.movedim(0, -1).reshape(-1)
    return weight.flatten(1)[:, order], order
