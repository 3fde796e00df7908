"""Optimal Brain Surgeon on a layer: weights are fixed one by one, and the others compensate for them.

ExactOBS and OBQ of arXiv 2208.11580. The inverse Hessian of the free weights is not stored: it is the initial one minus
V·Vᵀ, with one column of V for every fixed weight, so the cost of a step grows with the number of fixed weights
instead of the size of the matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tersor.process import importing
from tersor.solvers.cholesky import inverse_factor

# Elements of V for the rows processed together: more do not fit in the cache, fewer cost more calls.
_TOGETHER = 2**23
_TINY = 1e-30
# Steps after which removed columns are dropped from the arithmetic.
_STAGE = 64


@dataclass(frozen=True, eq=False)
class Elimination:
    """The elimination of each row.

    Attributes:
        order: ``[rows, steps]``, the columns in the order in which they were fixed.
        losses: ``[rows, steps]``, the increase of ½·e·H·eᵀ by each.
        weight: ``[rows, columns]`` after the last step.
    """

    order: Int[Tensor, "rows steps"]
    losses: Float[Tensor, "rows steps"]
    weight: Float[Tensor, "rows columns"]


def inverse(hessian: Tensor, damping: float, name: str) -> tuple[Float[Tensor, "columns columns"], float]:
    """(H + λ·mean(diag H)·I)⁻¹ in float64, and the λ used; inputs that are always zero count as 1."""
    hessian = hessian.double().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    upper, used = inverse_factor(hessian, damping, name)
    return upper.T @ upper, used


def eliminate(
    weight: Float[Tensor, "rows columns"],
    inverse: Float[Tensor, "columns columns"],
    steps: int,
    target: Callable[[Tensor, Tensor], Tensor] | None = None,
    group: tuple[int, int] | None = None,
    first: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Elimination:
    """Fix ``steps`` weights of every row, each time the one that costs least.

    Args:
        weight, inverse: of one layer; the arithmetic is in the weight's dtype.
        target: ``(values, their rows)`` → the value to fix each one to; None: zero.
        group: (n, m): at most m − n of every m neighbours may be fixed.
        first: ``(errors, their rows)`` → True for weights that must be fixed before all others.
    """
    count = max(1, _TOGETHER // (steps * weight.shape[1] or 1))
    inverse = inverse.to(weight.dtype)
    rows = torch.arange(len(weight), device=weight.device)
    parts = [
        _eliminate(part, inverse, steps, _of(target, own), group, _of(first, own))
        for part, own in zip(weight.split(count), rows.split(count), strict=True)
    ]
    return Elimination(*(torch.cat([getattr(p, f) for p in parts]) for f in ("order", "losses", "weight")))


def _of(function: Callable[[Tensor, Tensor], Tensor] | None, own: Tensor) -> Callable[[Tensor], Tensor] | None:
    return None if function is None else lambda values: function(values, own)


def _eliminate(
    weight: Tensor,
    inverse: Tensor,
    steps: int,
    target: Callable[[Tensor], Tensor] | None,
    group: tuple[int, int] | None,
    first: Callable[[Tensor], Tensor] | None,
) -> Elimination:
    (rows, columns), w = weight.shape, weight.clone()
    own = torch.arange(columns, device=w.device).expand(rows, columns)  # the column of each value
    diagonal = inverse.diagonal().expand(rows, columns).clone()
    gone = torch.zeros_like(w, dtype=torch.bool)
    v = weight.new_empty(rows, steps, columns)
    order, losses = own.new_empty(rows, steps), weight.new_empty(rows, steps)
    removed = own.new_zeros(rows, columns // group[1]) if group else None
    for k in range(steps):
        if target is None and k and k % _STAGE == 0:
            left = (~gone).nonzero()[:, 1].reshape(rows, -1)
            own, w, diagonal, gone = (t.gather(1, left) for t in (own, w, diagonal, gone))
            v = _narrowed(v, left, k)
        error = w if target is None else w - target(w)
        cost = (error.square() / diagonal).masked_fill_(gone, torch.inf)
        if first is not None:
            urgent = first(error) & ~gone
            cost = torch.where(urgent & urgent.any(1, keepdim=True), -error.abs(), cost)
        if removed is not None and group is not None:
            cost.masked_fill_((removed >= group[1] - group[0]).gather(1, own // group[1]), torch.inf)
        p = cost.argmin(1, keepdim=True)
        column = own.gather(1, p)
        row = inverse[column.squeeze(1)]
        if own.shape[1] < columns:
            row = row.gather(1, own)
        if k:
            mine = v[:, :k].gather(2, p[:, None].expand(rows, k, 1))
            row = row - (mine.transpose(1, 2) @ v[:, :k]).squeeze(1)
        pivot = row.gather(1, p).clamp_min_(_TINY)
        e = error.gather(1, p)
        order[:, k], losses[:, k] = column.squeeze(1), (e.square() / pivot).squeeze(1) / 2
        torch.div(row, pivot.sqrt(), out=v[:, k])
        fixed = w.gather(1, p) - e
        w = torch.addcmul(w, row, e / pivot, value=-1).scatter_(1, p, fixed)
        diagonal.addcmul_(v[:, k], v[:, k], value=-1).clamp_min_(_TINY)
        gone.scatter_(1, p, True)
        if removed is not None and group is not None:
            removed.scatter_add_(1, column // group[1], torch.ones_like(p))
    return Elimination(order, losses, torch.zeros_like(weight).scatter_(1, own, w))


def _narrowed(v: Tensor, left: Tensor, k: int) -> Tensor:
    """The first ``k`` of ``v`` at the columns ``left``, with space for the others."""
    found = v.new_empty(len(v), v.shape[1], left.shape[1])
    torch.gather(v[:, :k], 2, left[:, None].expand(-1, k, -1), out=found[:, :k])
    return found


def counts_of_rows(losses: Float[Tensor, "rows steps"], total: int) -> Int[Tensor, " rows"]:
    """How many weights to remove from each row so that the ``total`` costs least.

    The increments of a row are not monotone, so each row's curve is replaced by its lower convex hull, whose slopes
    are; the smallest slopes of all rows are taken.

    >>> counts_of_rows(torch.tensor([[1.0, 0.0, 5.0], [0.4, 0.7, 0.8]]), 3).tolist()
    [2, 1]
    """
    with importing():
        from scipy.optimize import isotonic_regression
    slopes = np.stack([isotonic_regression(row).x for row in losses.cpu().double().numpy()])
    flat = torch.from_numpy(slopes).reshape(-1)
    taken = flat.argsort(stable=True)[:total] // losses.shape[1]
    return torch.bincount(taken, minlength=len(losses)).to(losses.device)


def without(
    weight: Float[Tensor, "rows columns"],
    inverse: Float[Tensor, "columns columns"],
    order: Int[Tensor, "rows steps"],
    counts: Int[Tensor, " rows"],
) -> Float[Tensor, "rows columns"]:
    """Each row without the first ``counts`` columns of its order, the others at their optimum: exact least squares."""
    found = torch.empty_like(weight)
    for r, count in enumerate(counts.tolist()):
        row = weight[r].double()
        p = order[r, :count]
        if count:
            some = inverse[p]
            row = row - torch.linalg.solve(some[:, p], row[p]) @ some
            row[p] = 0
        found[r] = row.to(weight.dtype)
    return found
