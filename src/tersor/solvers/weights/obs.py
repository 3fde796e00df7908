"""Optimal Brain Surgeon on the loss, by blocks of its Fisher matrix."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from tersor.process import importing
from tersor.solvers.fisher import blocks_of, emptied, inverse_of, without
from tersor.solvers.weights.problem import WeightProblem

_TINY, _STEP = 1e-12, 1e-6


@dataclass(frozen=True)
class Obs:
    """Optimal Brain Surgeon: w²/(2·[H⁻¹]_qq), and the survivors of a block move to their optimum.

    The Hessian is the Fisher matrix in blocks of neighbouring weights (WoodFisher, arXiv 2004.14340). Within a block,
    weights are rated in the order in which they would go one by one, each after the others have moved.

    Args:
        block: weights of one block; memory and time grow with it.
        damping: the share of the mean of diag H that is added to it. It also keeps the survivors near where they were,
            since the quadratic holds only there: without it, far moves cost more than they save.
    """

    block: Annotated[int, Ge(1), Le(128)] = 32
    damping: Annotated[float, Ge(0)] = 0.3
    needs: ClassVar[frozenset[str]] = frozenset({"blocks"})
    comparable: ClassVar[bool] = True

    def __call__(self, problem: WeightProblem) -> Tensor:
        """The losses of a layer."""
        with importing():
            from scipy.optimize import isotonic_regression
        parts, inverses = self._parts(problem)
        trace = emptied(parts, inverses)
        # A weight that is cheap only once a dear one has gone costs the mean of both.
        slopes = torch.stack([torch.from_numpy(isotonic_regression(r).x) for r in trace.losses.cpu().double().numpy()])
        # Those of one mean go in order.
        slopes = slopes.to(parts) * (1 + _STEP * torch.arange(self.block, device=parts.device))
        found = torch.empty_like(parts).scatter_(1, trace.order, slopes)
        return found.reshape(-1)[: problem.weight.numel()].reshape(problem.weight.shape).clamp(min=0).float()

    def updated(self, problem: WeightProblem, keep: Tensor) -> Tensor:
        """The weight with zeros where ``keep`` is False, the others of each block at their optimum."""
        parts, inverses = self._parts(problem)
        # The padding of the last block goes, too.
        gone = blocks_of(keep.reshape(1, -1).double(), self.block).squeeze(1) == 0
        found = without(parts, inverses, gone).reshape(-1)[: problem.weight.numel()].reshape(problem.weight.shape)
        return found.to(problem.weight.dtype).masked_fill(~keep, 0.0)

    def _parts(self, problem: WeightProblem) -> tuple[Tensor, Tensor]:
        """The weight in blocks, and the inverse of the damped Hessian of each; float64."""
        parts = blocks_of(problem.weight.detach().double().reshape(1, -1), self.block).squeeze(1)
        fisher = problem.given("blocks")
        mean = float(fisher.diagonal(dim1=1, dim2=2).sum()) / problem.weight.numel()
        return parts, inverse_of(problem.name, fisher, len(parts), self.damping * mean + _TINY)
