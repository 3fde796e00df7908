"""Codes, scales and zero points moved one at a time, each to its optimum under the Hessian given all others.

Cyclic coordinate descent on the codes is QuantEase (arXiv 2309.01885); here scales are moved, too. Every step is exact,
so the output's error never grows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.numerics import QuantSpec

# Columns updated together, in two block sizes: inner blocks fit in the cache.
OUTER, INNER = 128, 16
Rounding = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Coded:
    """A weight in codes, columns first.

    Attributes:
        codes: ``[columns, rows]`` float.
        scale, zero: ``[groups, rows]``; a group is ``width`` consecutive columns; the last may be partial.
        gone: ``[columns, rows]`` bool, True for weights that are zero and stay so; None: there are none.
    """

    codes: Float[Tensor, "columns rows"]
    scale: Float[Tensor, "groups rows"]
    zero: Float[Tensor, "groups rows"]
    width: int
    gone: Tensor | None = None

    def values(self) -> Float[Tensor, "columns rows"]:
        """The values that the codes represent."""
        scale, zero = (self.of_columns(t) for t in (self.scale, self.zero))
        return (self.codes - zero) * scale

    def of_columns(self, t: Tensor, columns: Tensor | None = None) -> Float[Tensor, "columns rows"]:
        """``scale`` or ``zero`` for each column, or for ``columns`` in that order; a view if all share one."""
        if len(t) == 1:
            return t.expand(self.codes.shape)
        if columns is None:
            columns = torch.arange(len(self.codes), device=t.device)
        return t[columns // self.width]


def refined(
    coded: Coded,
    target: Float[Tensor, "columns rows"],
    hessian: Float[Tensor, "columns columns"],
    rounded: Rounding,
    sweeps: int,
    spec: QuantSpec | None,
) -> Coded:
    """``coded`` moved towards ``target`` under ``hessian``; no row's (v − t)ᵀ·H·(v − t) grows.

    Args:
        coded: the start; it is not changed.
        target: the weight to approximate.
        hessian: not damped; its diagonal is positive.
        rounded: ``(values, scale, zero)`` → the nearest code of each.
        sweeps: how often all codes are visited; one costs two products of the Hessian and the weight.
        spec: the dtype of scales and the bounds of zero points; None keeps both as they are.

    >>> start = Coded(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0]]), torch.zeros(1, 1), 2)
    >>> h, nearest = torch.eye(2), lambda w, s, z: (w / s).round().add(z).clamp(-7, 7)
    >>> refined(start, torch.tensor([[1.5], [3.0]]), h, nearest, 1, QuantSpec("int4", "channel")).values().tolist()
    [[1.5], [3.0]]
    """
    codes, scale, zero, value = coded.codes.clone(), coded.scale.clone(), coded.zero.clone(), coded.values()
    slope = hessian @ (value - target)
    before = (slope * (value - target)).sum(0)
    grouped = len(scale) > 1
    # A block consists of whole groups.
    block = -(-OUTER // coded.width) * coded.width if grouped and coded.width > 1 else OUTER
    for _ in range(sweeps):
        if spec is not None and not grouped:
            _rescale(hessian, slope, slice(None), codes, scale[0], zero[0], spec)
            value = (codes - zero) * scale
        for a in range(0, len(codes), block):
            part = slice(a, a + block)
            near, old, square = slope[part].clone(), value[part].clone(), hessian[part, part]
            if spec is not None and grouped:
                for c in range(a, min(a + block, len(codes)), coded.width):
                    own, k = slice(c, c + coded.width), c // coded.width
                    inside = slice(c - a, c - a + coded.width)
                    _rescale(square[:, inside], near, inside, codes[own], scale[k], zero[k], spec)
                    value[own] = (codes[own] - zero[k]) * scale[k]
            columns = torch.arange(len(codes), device=codes.device)[part]
            steps, zeros = (coded.of_columns(t, columns)[: len(columns)] for t in (scale, zero))
            gone = None if coded.gone is None else coded.gone[part]
            _recode(square, near, codes[part], value[part], steps, zeros, rounded, gone)
            slope.addmm_(hessian[:, part], value[part] - old)
    # The steps are exact up to rounding: a row that gains no more than that keeps its initial codes.
    worse = (slope * (value - target)).sum(0) >= before
    for new, start in ((codes, coded.codes), (scale, coded.scale), (zero, coded.zero)):
        new[:, worse] = start[:, worse]
    return Coded(codes, scale, zero, coded.width, coded.gone)


def _recode(
    hessian: Tensor, slope: Tensor, codes: Tensor, value: Tensor, step: Tensor, zero: Tensor, rounded: Rounding,
    gone: Tensor | None = None,
) -> None:
    """Move every column's codes to their optimum given the others', in place; ``slope`` is overwritten."""
    for c in range(0, len(codes), INNER):
        d = min(c + INNER, len(codes))
        moved = value[c:d].clone()
        for k in range(c, d):
            free = value[k] - slope[k] / hessian[k, k]
            codes[k] = code = rounded(zeroed(free, gone, k), step[k], zero[k])
            new = (code - zero[k]) * step[k]
            if k + 1 < d:
                slope[k + 1 : d].addcmul_(hessian[k + 1 : d, k, None], new - value[k])
            value[k] = new
        if d < len(codes):
            slope[d:].addmm_(hessian[d:, c:d], value[c:d] - moved)


def zeroed(values: Tensor, gone: Tensor | None, k: int) -> Tensor:
    """The values of column ``k``, zero where they are gone."""
    return values if gone is None else values.masked_fill(gone[k], 0.0)


def _rescale(
    hessian: Float[Tensor, "block members"],
    slope: Float[Tensor, "block rows"],
    inside: slice,
    codes: Float[Tensor, "members rows"],
    scale: Float[Tensor, " rows"],
    zero: Float[Tensor, " rows"],
    spec: QuantSpec,
) -> None:
    """Move one group's scale and zero point to their optimum given the codes: ``scale``, ``zero``, ``slope`` in place.

    The values s·c of the centred codes c = q − z become s'·(c − d): they move by p·c − r with p = s' − s and r = s'·d,
    and the error changes by 2·(p·c·g − r·1·g) + p²·cHc − 2·p·r·cH1 + r²·1H1, with g the slope.
    """
    centred = codes - zero
    reach, ones = hessian @ centred, hessian.sum(1)[:, None]
    cg, og = (centred * slope[inside]).sum(0), slope[inside].sum(0)
    chc, cho, oho = (centred * reach[inside]).sum(0), (centred * ones[inside]).sum(0), ones[inside].sum()
    shifts = [torch.zeros_like(zero)]
    if not spec.symmetric:
        # Both free: two equations in p and r.
        det = chc * oho - cho * cho
        p, r = (cho * og - oho * cg) / det, (chc * og - cho * cg) / det
        shift = (r / (scale + p)).nan_to_num_(0.0, 0.0, 0.0)
        shifts += [(zero + d).clamp(spec.low, spec.high) - zero for d in (shift.floor(), shift.ceil())]
    dtype = getattr(torch, spec.scale_dtype)
    best, least = (scale.clone(), shifts[0].clone()), torch.zeros_like(scale)
    for shift in shifts:
        power = chc - 2 * shift * cho + shift * shift * oho
        free = scale * (chc - shift * cho) / power - (cg - shift * og) / power
        stored = free.to(dtype).float()
        p, r = stored - scale, stored * shift
        change = 2 * (p * cg - r * og) + p * p * chc - 2 * p * r * cho + r * r * oho
        better = (change < least) & (stored >= torch.finfo(dtype).smallest_normal) & stored.isfinite()
        least = torch.where(better, change, least)
        best = tuple(torch.where(better, new, old) for new, old in zip((stored, shift), best, strict=True))
    new, shift = best
    slope += new * (reach - shift * ones) - scale * reach
    scale.copy_(new)
    zero += shift
