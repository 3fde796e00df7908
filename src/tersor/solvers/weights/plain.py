"""Scores that rate each weight by itself, and leave the others as they are."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tersor.solvers.weights.problem import Plain, WeightProblem


@dataclass(frozen=True)
class Random(Plain):
    """By lot: the baseline."""

    needs: ClassVar[frozenset[str]] = frozenset()
    comparable: ClassVar[bool] = True

    def __call__(self, problem: WeightProblem) -> Tensor:
        """The losses of a layer."""
        generator = torch.Generator().manual_seed(problem.seed)
        return torch.rand(problem.weight.shape, generator=generator).to(problem.weight.device)


@dataclass(frozen=True)
class Magnitude(Plain):
    """|weight| (Han et al., arXiv 1506.02626).

    >>> Magnitude()(WeightProblem("fc", torch.tensor([[-2.0, 1.0]]))).tolist()
    [[2.0, 1.0]]
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    comparable: ClassVar[bool] = True

    def __call__(self, problem: WeightProblem) -> Tensor:
        """The losses of a layer."""
        return problem.weight.detach().float().abs()


@dataclass(frozen=True)
class Wanda(Plain):
    """|weight| times the norm of its input (arXiv 2306.11695)."""

    needs: ClassVar[frozenset[str]] = frozenset({"norms"})
    comparable: ClassVar[bool] = False

    def __call__(self, problem: WeightProblem) -> Tensor:
        """The losses of a layer."""
        return problem.weight.detach().float().abs() * problem.given("norms")


@dataclass(frozen=True)
class Taylor(Plain):
    """(gradient·weight)²: the square of the loss's change to first order (arXiv 1906.10771)."""

    needs: ClassVar[frozenset[str]] = frozenset({"slopes"})
    comparable: ClassVar[bool] = True

    def __call__(self, problem: WeightProblem) -> Tensor:
        """The losses of a layer."""
        return (problem.weight.detach().float() * problem.given("slopes")).square()


@dataclass(frozen=True)
class Obd(Plain):
    """Optimal Brain Damage: ½·H_qq·w², by the diagonal of the Fisher matrix (LeCun et al., 1989).

    >>> Obd()(WeightProblem("fc", torch.tensor([[2.0]]), squares=torch.tensor([[3.0]]))).tolist()
    [[6.0]]
    """

    needs: ClassVar[frozenset[str]] = frozenset({"squares"})
    comparable: ClassVar[bool] = True

    def __call__(self, problem: WeightProblem) -> Tensor:
        """The losses of a layer."""
        return problem.weight.detach().float().square() * problem.given("squares") / 2
