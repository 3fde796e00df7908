"""Solvers that make weights zero: by size, by size and input, and by the second-order family."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tersor.solvers.cholesky import inverse_factor
from tersor.solvers.gptq import fitting_grams, output_error
from tersor.solvers.obs import counts_of_rows, eliminate, inverse, without
from tersor.solvers.problem import LayerProblem
from tersor.solvers.sparsity import PrunedLayer, Sparsity, columns_first

_BLOCK = 128


class _Pruner:
    """Splits a layer into its groups, lays neighbouring inputs side by side, and judges the result."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def __call__(self, problem: LayerProblem, sparsity: Sparsity) -> PrunedLayer:
        """Make so many weights zero.

        Raises:
            RecipeError: where n:m does not divide the layer's inputs.
            CalibrationError: without a Gram matrix, where the solver needs one.
        """
        weight = problem.weight.detach().float()
        sparsity.check(problem.name, weight.shape[1])
        flat, order = columns_first(weight)
        grams = fitting_grams(problem) if "gram" in self.needs or problem.gram is not None else None
        count = problem.geometry.groups
        hessians: list[Any] = [None] * count if grams is None else [h.float()[order][:, order] for h in grams]
        told: list[str] = []
        parts = []
        for part, hessian in zip(flat.chunk(count), hessians, strict=True):
            found, note = self._solve(part, hessian, sparsity, problem.name)
            parts.append(found)
            told.append(note)
        result = torch.empty_like(flat)
        result[:, order] = torch.cat(parts)
        result = result.reshape(weight.shape)
        method = ", ".join(dict.fromkeys(filter(None, (self.name, *told))))
        return PrunedLayer(result, method, None if grams is None else output_error(weight, result, grams))

    def _solve(self, w: Tensor, hessian: Any, sparsity: Sparsity, name: str) -> tuple[Tensor, str]:
        raise NotImplementedError


@dataclass(frozen=True)
class Magnitude(_Pruner):
    """The smallest go."""

    name: ClassVar[str] = "magnitude"
    needs: ClassVar[tuple[str, ...]] = ()

    def _solve(self, w: Tensor, hessian: Any, sparsity: Sparsity, name: str) -> tuple[Tensor, str]:
        return w * sparsity.kept(w.abs()), ""


@dataclass(frozen=True)
class Wanda(_Pruner):
    """The smallest |w|·‖x‖ of every output go (arXiv 2306.11695); nothing is updated."""

    name: ClassVar[str] = "wanda"

    def _solve(self, w: Tensor, hessian: Tensor, sparsity: Sparsity, name: str) -> tuple[Tensor, str]:
        rows = Sparsity(sparsity.share, "row") if sparsity.pattern == "layer" else sparsity
        return w * rows.kept(w.abs() * hessian.diagonal().sqrt()), ""


@dataclass(frozen=True)
class Obd(_Pruner):
    """Optimal Brain Damage: the smallest ½·H_jj·w² go (LeCun et al., 1989); nothing is updated."""

    name: ClassVar[str] = "obd"

    def _solve(self, w: Tensor, hessian: Tensor, sparsity: Sparsity, name: str) -> tuple[Tensor, str]:
        return w * sparsity.kept(w.square() * hessian.diagonal() / 2), ""


@dataclass(frozen=True)
class SparseGpt(_Pruner):
    """Blocks of columns choose by w²/U², and the columns behind make up for them (arXiv 2301.00774)."""

    damping: float = 0.01
    name: ClassVar[str] = "sparsegpt"

    def _solve(self, w: Tensor, hessian: Tensor, sparsity: Sparsity, name: str) -> tuple[Tensor, str]:
        hessian, w = hessian.clone(), w.clone()
        dead = hessian.diagonal() == 0
        hessian.diagonal()[dead] = 1
        w[:, dead] = 0
        factor, used = inverse_factor(hessian, self.damping, name)
        for a in range(0, w.shape[1], _BLOCK):
            b = min(a + _BLOCK, w.shape[1])
            errors = torch.empty_like(w[:, a:b])
            kept = None if sparsity.group else sparsity.kept(w[:, a:b].square() / factor.diagonal()[a:b].square())
            for k in range(a, b):
                if sparsity.group and k % sparsity.group[1] == 0:
                    m = slice(k, k + sparsity.group[1])
                    now = sparsity.kept(w[:, m].square() / factor.diagonal()[m].square())
                stays = now[:, k % sparsity.group[1]] if sparsity.group else kept[:, k - a]  # type: ignore[index]
                errors[:, k - a] = w[:, k] * ~stays / factor[k, k]
                w[:, k] *= stays
                w[:, k + 1 : b] -= errors[:, k - a, None] * factor[k, k + 1 : b]
            w[:, b:] -= errors @ factor[a:b, b:]
        return w, f"damping {used:g}"


@dataclass(frozen=True)
class ExactObs(_Pruner):
    """One weight at a time, the cheapest of its row, all others updated; rows share the layer's budget.

    arXiv 2208.11580, whose rows are here divided over the lower convex hulls of their loss curves.
    """

    damping: float = 0.01
    name: ClassVar[str] = "exactobs"

    def _solve(self, w: Tensor, hessian: Tensor, sparsity: Sparsity, name: str) -> tuple[Tensor, str]:
        found, used = inverse(hessian, self.damping, name)
        rows, columns = w.shape
        total = round(sparsity.share * columns)
        # No row is looked at further than half beyond its share.
        steps = min(columns, total + total // 2) if sparsity.pattern == "layer" else total
        traced = eliminate(w, found, steps, lambda values, own: torch.zeros_like(values), sparsity.group)
        counts = torch.full((rows,), total)
        if sparsity.pattern == "layer":
            counts = counts_of_rows(traced.losses, round(sparsity.share * w.numel()))
        return without(w, found, traced.order, counts), f"damping {used:g}"


PRUNERS: dict[str, type[_Pruner]] = {p.name: p for p in (Magnitude, Wanda, Obd, SparseGpt, ExactObs)}
"""All solvers of sparsity by name."""
