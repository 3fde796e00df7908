"""Pruning in a report: what went, as a sentence, a table and bars."""

from dataclasses import dataclass

from markupsafe import Markup

from tersor.measure.parts.pruning import Pruning, Width, Zeros, names_of, summary
from tersor.report import svg
from tersor.report.tables.grid import Column, Grid
from tersor.words import _

_ROWS = 12  # that a terminal shows


@dataclass(frozen=True)
class Row:
    """One group: its layers in words, its widths, and both as bars."""

    layers: str
    before: int
    after: int
    drawing: Markup


def sentence(pruning: Pruning) -> str:
    """What went, with a capital."""
    words = summary(pruning)
    return words[:1].upper() + words[1:]


def rows(pruning: Pruning) -> list[Row]:
    """All groups or layers, in the network's order, then ranks; of zeros the bars are the weights that are left."""
    if pruning.zeros:
        most = max(z.weights for z in pruning.zeros)
        return [
            Row(z.layer, z.weights, z.weights - z.zeros, svg.twin_bar(z.weights, z.weights - z.zeros, most, _zeros(z)))
            for z in pruning.zeros
        ]
    top = max((w.before for w in (*pruning.widths, *pruning.ranks)), default=1)
    found = [Row(names_of(w), w.before, w.after, _drawn(w, top)) for w in pruning.widths]
    return found + [Row(names_of(w), w.before, w.after, _drawn(w, top, rank=True)) for w in pruning.ranks]


def _zeros(zeros: Zeros) -> str:
    return _("{zeros} of {weights} weights are zero", zeros=zeros.zeros, weights=zeros.weights)


def _drawn(width: Width, top: int, *, rank: bool = False) -> Markup:
    if rank:
        words = _("rank {before} before, {after} after", before=width.before, after=width.after)
    else:
        words = _("{before} channels before, {after} after", before=width.before, after=width.after)
    return svg.twin_bar(width.before, width.after, top, words)


def grid(pruning: Pruning) -> Grid | None:
    """The table for a terminal: the groups or layers that lost the largest shares; None if none lost any."""
    if pruning.zeros:
        return _grid_of_zeros(pruning)
    narrower = [w for w in (*pruning.widths, *pruning.ranks) if w.after < w.before]
    if not narrower:
        return None
    grid = Grid(
        Column(_("narrower")), Column(_("before"), right=True), Column(_("after"), right=True),
        Column(_("left"), right=True, drop=1), ruled=True,
    )  # fmt: skip
    lost = sorted(narrower, key=lambda w: w.after / w.before)
    for width in lost[:_ROWS]:
        share = f"{100 * width.after / width.before:.0f} %"
        grid.add(names_of(width), str(width.before), str(width.after), share)
    if len(lost) > _ROWS:
        grid.add(_("and {count} more", count=len(lost) - _ROWS), "", "", "")
    return grid


def _grid_of_zeros(pruning: Pruning) -> Grid:
    grid = Grid(
        Column(_("sparse")), Column(_("weights"), right=True), Column(_("zero"), right=True),
        Column(_("share"), right=True, drop=1), ruled=True,
    )  # fmt: skip
    found = sorted(pruning.zeros, key=lambda z: -z.zeros / max(1, z.weights))
    for one in found[:_ROWS]:
        share = f"{100 * one.zeros / max(1, one.weights):.0f} %"
        grid.add(one.layer, str(one.weights), str(one.zeros), share)
    if len(found) > _ROWS:
        grid.add(_("and {count} more", count=len(found) - _ROWS), "", "", "")
    return grid
