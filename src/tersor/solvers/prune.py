"""Pruners: by magnitude, by magnitude and input, and by the second-order family."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from tersor.solvers.cholesky import inverse_factor
from tersor.solvers.obs import counts_of_rows, eliminate, inverse, without
from tersor.solvers.output_error import fitting_grams, output_error
from tersor.solvers.problem import LayerProblem
from tersor.solvers.sparsity import PrunedLayer, Pruner, Sparsity, columns_first

_BLOCK = 128


class _Pruner:
    """Shared by all pruners: splits a layer into its groups, lays out neighbouring inputs, measures the result."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def __call__(self, problem: LayerProblem, sparsity: Sparsity) -> PrunedLayer:
        """Make weights zero until the sparsity is reached.

        Raises:
            RecipeError: if n:m does not divide the layer's inputs.
            CalibrationError: without a Gram matrix, if the pruner needs one.
        """
        weight = problem.weight.detach().float()
        sparsity.check(problem.name, weight.shape[1])
        flat, order = columns_first(weight)
        grams = fitting_grams(problem) if "gram" in self.needs or problem.gram is not None else None
        count = problem.geometry.groups
        hessians: list[Any] = [None] * count if grams is None else [h.float()[order][:, order] for h in grams]
        notes: list[str] = []
        parts = []
        for part, hessian in zip(flat.chunk(count), hessians, strict=True):
            found, note = self._solve(part, hessian, sparsity, problem.name)
            parts.append(found)
            notes.append(note)
        result = torch.empty_like(flat)
        result[:, order] = torch.cat(parts) + 0.0  # −0.0 would be stored as another value
        result = result.reshape(weight.shape)
        method = ", ".join(dict.fromkeys(filter(None, (self.name, *notes))))
        return PrunedLayer(result, method, None if grams is None else output_error(weight, result, grams))

    def curve(self, problem: LayerProblem, shares: Sequence[float]) -> list[tuple[int, float]]:
        """[(weights kept, output error)] for each share of zeros, in the order of ``shares``.

        ``tersor.solvers.allocate`` divides a network's budget over these curves.

        Raises:
            CalibrationError: without a Gram matrix, which is needed to measure the output error.
        """
        problem.require(("gram",))
        points = []
        for share in shares:
            found = self(problem, Sparsity(share))
            assert found.output_error is not None
            points.append((int(torch.count_nonzero(found.weight)), found.output_error))
        return points

    def _solve(self, w: Tensor, hessian: Any, sparsity: Sparsity, name: str) -> tuple[Tensor, str]:
        raise NotImplementedError


@dataclass(frozen=True)
class Magnitude(_Pruner):
    """Removes the smallest weights."""

    name: ClassVar[str] = "magnitude"
    needs: ClassVar[tuple[str, ...]] = ()

    def _solve(self, w: Tensor, hessian: Any, sparsity: Sparsity, name: str) -> tuple[Tensor, str]:
        return w * sparsity.kept(w.abs()), ""


@dataclass(frozen=True)
class Wanda(_Pruner):
    """Removes the smallest |w|·‖x‖ of every output (arXiv 2306.11695); the other weights are kept."""

    name: ClassVar[str] = "wanda"

    def _solve(self, w: Tensor, hessian: Tensor, sparsity: Sparsity, name: str) -> tuple[Tensor, str]:
        rows = Sparsity(sparsity.share, "row") if sparsity.pattern == "layer" else sparsity
        return w * rows.kept(w.abs() * hessian.diagonal().sqrt()), ""


@dataclass(frozen=True)
class Obd(_Pruner):
    """Optimal Brain Damage: removes the smallest ½·H_jj·w² (LeCun et al., 1989); the other weights are kept."""

    name: ClassVar[str] = "obd"

    def _solve(self, w: Tensor, hessian: Tensor, sparsity: Sparsity, name: str) -> tuple[Tensor, str]:
        return w * sparsity.kept(w.square() * hessian.diagonal() / 2), ""


@dataclass(frozen=True)
class SparseGpt(_Pruner):
    """Removes the smallest w²/U² of each block of columns; later columns compensate (arXiv 2301.00774)."""

    damping: Annotated[float, Ge(0)] = 0.01
    name: ClassVar[str] = "sparsegpt"

    def _solve(self, w: Tensor, hessian: Tensor, sparsity: Sparsity, name: str) -> tuple[Tensor, str]:
        factor, w, used = factored(w, hessian, self.damping, name)
        return prune_columns(w, factor, sparsity, lambda column, k: column), f"damping {used:g}"


def factored(w: Tensor, hessian: Tensor, damping: float, name: str) -> tuple[Tensor, Tensor, float]:
    """The factor of H⁻¹, a copy of the weight with zeros for inputs that are always zero, and the damping used."""
    hessian = hessian.clone()
    alive = _alive(w, hessian)
    hessian.diagonal()[hessian.diagonal() == 0] = 1
    factor, used = inverse_factor(hessian, damping, name)
    return factor, alive, used


def prune_columns(
    w: Float[Tensor, "rows columns"],
    factor: Float[Tensor, "columns columns"],
    sparsity: Sparsity,
    target: Callable[[Tensor, int], Tensor],
) -> Float[Tensor, "rows columns"]:
    """SparseGPT's sweep over ``w``, in place: kept weights become ``target(values, column)``, others zero."""
    span = sparsity.group[1] if sparsity.group else _BLOCK  # columns chosen together
    block = max(_BLOCK // span, 1) * span
    for a in range(0, w.shape[1], block):
        b = min(a + block, w.shape[1])
        errors = torch.empty_like(w[:, a:b])
        for start in range(a, b, span):
            m = slice(start, min(start + span, b))
            kept = sparsity.kept(w[:, m].square() / factor.diagonal()[m].square())
            for k in range(m.start, m.stop):
                fixed = torch.where(kept[:, k - start], target(w[:, k], k), 0.0)
                errors[:, k - a] = (w[:, k] - fixed) / factor[k, k]
                w[:, k] = fixed
                w[:, k + 1 : b] -= errors[:, k - a, None] * factor[k, k + 1 : b]
        w[:, b:] -= errors @ factor[a:b, b:]
    return w


@dataclass(frozen=True)
class ExactObs(_Pruner):
    """Removes one weight at a time, the cheapest in its row, and updates all others in the row.

    Rows share the layer's budget. arXiv 2208.11580; here the budget is divided over the lower convex hulls of the rows'
    loss curves.
    """

    damping: Annotated[float, Ge(0)] = 0.01
    name: ClassVar[str] = "exactobs"

    def _solve(self, w: Tensor, hessian: Tensor, sparsity: Sparsity, name: str) -> tuple[Tensor, str]:
        found, used = inverse(hessian, self.damping, name)
        rows, columns = w.shape
        total = round(sparsity.share * columns)
        # No row loses more than one and a half times its share.
        steps = min(columns, total + total // 2) if sparsity.pattern == "layer" else total
        traced = eliminate(_alive(w, hessian), found, steps, group=sparsity.group)
        counts = torch.full((rows,), total, device=w.device)
        if sparsity.pattern == "layer":
            counts = counts_of_rows(traced.losses, round(sparsity.share * w.numel()))
        return without(w, found, traced.order, counts), f"damping {used:g}"

    def curve(self, problem: LayerProblem, shares: Sequence[float]) -> list[tuple[int, float]]:
        """As for every pruner, but from one elimination; errors are measured with the damped Hessian."""
        grams, weight = fitting_grams(problem), problem.weight.detach().float()
        power, errors, staying = 0.0, [0.0] * len(shares), [weight.numel()] * len(shares)
        for w, hessian in zip(weight.flatten(1).chunk(len(grams)), grams, strict=True):
            found, _ = inverse(hessian, self.damping, problem.name)
            power += float(((w @ hessian.float()) * w).sum(dtype=torch.float64))
            traced = eliminate(_alive(w, hessian), found, w.shape[1])
            sums = torch.cat([w.new_zeros(len(w), 1), traced.losses.cumsum(1)], 1)
            for k, share in enumerate(shares):
                counts = counts_of_rows(traced.losses, round(share * w.numel()))
                staying[k] -= int(counts.sum())
                errors[k] += 2 * float(sums.gather(1, counts[:, None]).sum())
        return [(kept, error / power if power else 0.0) for kept, error in zip(staying, errors, strict=True)]


def _alive(w: Tensor, hessian: Tensor) -> Tensor:
    """The weights with zeros for inputs that are always zero: these cost nothing and are removed first."""
    return w.masked_fill(hessian.diagonal() == 0, 0.0)


PRUNERS: dict[str, type[Pruner]] = {
    "magnitude": Magnitude,
    "wanda": Wanda,
    "obd": Obd,
    "sparsegpt": SparseGpt,
    "exactobs": ExactObs,
}
"""All pruners by name."""
