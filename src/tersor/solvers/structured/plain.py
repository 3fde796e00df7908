"""Scores that rate each atom by itself."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tersor.solvers.structured.problem import GroupProblem, Ranking


@dataclass(frozen=True)
class Random:
    """By lot: the baseline."""

    needs: ClassVar[frozenset[str]] = frozenset()
    comparable: ClassVar[bool] = False

    def __call__(self, problem: GroupProblem) -> Ranking:
        """The ranking of a group."""
        return Ranking.of(torch.rand(problem.count, generator=torch.Generator().manual_seed(problem.seed)))


@dataclass(frozen=True)
class Magnitude:
    """The norm of all weights that write an atom and read it (arXiv 1608.08710; of whole groups, arXiv 2301.12900).

    Args:
        norm: 1 or 2.

    >>> Magnitude()(GroupProblem("a", (torch.tensor([[3.0], [1.0], [2.0]]),))).order.tolist()
    [1, 2, 0]
    """

    norm: Literal[1, 2] = 2
    needs: ClassVar[frozenset[str]] = frozenset()
    comparable: ClassVar[bool] = False

    def __call__(self, problem: GroupProblem) -> Ranking:
        """The ranking of a group."""
        return Ranking.of(sum((_norm(t, self.norm) for t in _all(problem)), start=torch.zeros(problem.count)))


@dataclass(frozen=True)
class BatchNormScale:
    """|γ| of the BatchNorm behind the layer (network slimming, arXiv 1708.06519)."""

    needs: ClassVar[frozenset[str]] = frozenset()
    comparable: ClassVar[bool] = True

    def __call__(self, problem: GroupProblem) -> Ranking:
        """The ranking of a group."""
        return Ranking.of(problem.require("BatchNorm", problem.scales).abs().sum(1).float())


@dataclass(frozen=True)
class ActivationZeros:
    """The average share of values that are not zero (APoZ, arXiv 1607.03250)."""

    needs: ClassVar[frozenset[str]] = frozenset({"inputs"})
    comparable: ClassVar[bool] = False

    def __call__(self, problem: GroupProblem) -> Ranking:
        """The ranking of a group."""
        return Ranking.of(1 - problem.require("values that a layer reads", problem.zeros))


@dataclass(frozen=True)
class GeometricMedian:
    """The distance to all others: what lies in their middle can be made of them (arXiv 1811.00250)."""

    needs: ClassVar[frozenset[str]] = frozenset()
    comparable: ClassVar[bool] = False

    def __call__(self, problem: GroupProblem) -> Ranking:
        """The ranking of a group."""
        values = torch.cat([t.float() for t in problem.require("weights", problem.written)], 1)
        return Ranking.of(torch.cdist(values, values).sum(1))


@dataclass(frozen=True)
class Wanda:
    """|weight| times the norm of its input, over all columns that read an atom (arXiv 2306.11695)."""

    needs: ClassVar[frozenset[str]] = frozenset({"inputs"})
    comparable: ClassVar[bool] = False

    def __call__(self, problem: GroupProblem) -> Ranking:
        """The ranking of a group."""
        found = torch.zeros(problem.count)
        for reader in problem.require("layers that read them", problem.readers):
            gram = problem.require("inputs", reader.gram)
            found += (reader.weight.abs().sum(0) * gram.diagonal().clamp(min=0).sqrt())[reader.columns].sum(1).cpu()
        return Ranking.of(found)


@dataclass(frozen=True)
class Taylor:
    """½·the mean square of the loss's change to first order, Σ gradient·weight (arXiv 1906.10771).

    Each batch of drawn predictions is one draw. Unlike in ``fisher``, the weights of a channel may make up for each
    other.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})
    comparable: ClassVar[bool] = True

    def __call__(self, problem: GroupProblem) -> Ranking:
        """The ranking of a group."""
        changes: Tensor = problem.require("gradients", problem.changes)
        return Ranking.of(changes.square().sum(0) / 2)


@dataclass(frozen=True)
class Fisher:
    """½·Σ weight²·mean(gradient²): the diagonal of the Fisher matrix as the Hessian (arXiv 1801.05787)."""

    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})
    comparable: ClassVar[bool] = True

    def __call__(self, problem: GroupProblem) -> Ranking:
        """The ranking of a group."""
        pairs = zip(problem.written, problem.require("gradients", problem.squares), strict=True)
        found = sum(((t.square() * s).sum(1) for t, s in pairs), start=torch.zeros(problem.count))
        return Ranking.of(found / 2)


def _all(problem: GroupProblem) -> list[Tensor]:
    """Everything that writes and reads the atoms, as [atoms, values]."""
    read = [r.weight[:, r.columns].movedim(0, 1).flatten(1) for r in problem.readers]
    return [t.float() for t in (*problem.written, *read)]


def _norm(values: Tensor, norm: int) -> Tensor:
    return values.abs().sum(1) if norm == 1 else values.square().sum(1).sqrt()
