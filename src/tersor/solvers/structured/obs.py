"""OBS by structure: remove the atom whose loss costs least when the others make up for it, and again."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tersor.solvers.cholesky import inverse_factor
from tersor.solvers.structured.problem import GroupProblem, Ranking, Reader


@dataclass(frozen=True)
class StructuredObs:
    """Optimal Brain Surgeon for whole groups of columns (arXiv 2302.04089; from Hassibi and Stork, 1993).

    Without the columns S, the other columns of W change by −W_S·(H⁻¹_SS)⁻¹·H⁻¹_S: and the outputs' error grows by
    the trace of W_S·(H⁻¹_SS)⁻¹·W_Sᵀ, its rows weighted by how much the network depends on them. After each atom the
    inverse is updated, so redundant atoms protect each other.

    Args:
        damping: added to the diagonal of the covariance, as a share of its mean.
    """

    damping: float = 1e-3
    needs: ClassVar[frozenset[str]] = frozenset({"inputs", "outputs"})
    comparable: ClassVar[bool] = True

    def __call__(self, problem: GroupProblem) -> Ranking:
        """The ranking of a group.

        Raises:
            RecipeError: no layer with inputs reads the group.
            CalibrationError: the inputs' covariance is not positive definite, even damped.
        """
        readers = problem.require("layers that read them", problem.readers)
        surgeons = [Surgeon(r, problem.require("inputs", r.gram), self.damping, problem.name) for r in readers]
        left = torch.ones(problem.count, dtype=torch.bool)
        order, losses, total = list[int](), list[float](), 0.0
        for _step in range(problem.count):
            costs = sum((s.costs() for s in surgeons), start=torch.zeros(problem.count, dtype=torch.float64))
            worst = int(torch.where(left, costs, torch.inf).argmin())
            total += max(0.0, float(costs[worst]))
            order.append(worst)
            losses.append(total)
            left[worst] = False
            for surgeon in surgeons:
                surgeon.remove(worst)
        return Ranking(torch.tensor(order), torch.tensor(losses, dtype=torch.float32))


class Surgeon:
    """One reader during surgery: its weight and the inverse of its inputs' covariance, in float64."""

    def __init__(self, reader: Reader, gram: Tensor, damping: float, name: str) -> None:
        covariance = gram.double()
        if not covariance.diagonal().mean() > 0:  # inputs that never change
            covariance = torch.eye(len(covariance), dtype=torch.float64)
        half, _ = inverse_factor(covariance, damping, name)
        self.inverse = half.T @ half
        rows = torch.ones(len(reader.weight)) if reader.rows is None else reader.rows
        self.weight = reader.weight.double() * rows.double().clamp(min=0).sqrt()[:, None]
        self.columns = reader.columns
        self._gone = torch.zeros(len(reader.columns), dtype=torch.bool)

    def costs(self) -> Tensor:
        """What the loss of each atom adds to half the weighted error: [atoms]; 0 for those that are gone."""
        found = torch.zeros(len(self.columns), dtype=torch.float64)
        (left,) = torch.where(~self._gone)
        if not len(left):
            return found
        columns = self.columns[left]
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        weights = self.weight[:, columns].permute(1, 2, 0)  # [atoms, each, outputs]
        found[left] = (weights * torch.linalg.solve(blocks, weights)).sum((1, 2)) / 2
        return found

    def remove(self, atom: int) -> None:
        """Take an atom out, and let the others make up for it."""
        columns = self.columns[atom]
        across = self.inverse[columns]
        solved = torch.linalg.solve(across[:, columns], across)
        self.weight -= self.weight[:, columns] @ solved
        self.inverse -= across.T @ solved
        # What is gone stays apart: its block is kept invertible, and its weights are zeros.
        self.weight[:, columns] = 0
        self.inverse[columns] = 0
        self.inverse[:, columns] = 0
        self._gone[atom] = True
