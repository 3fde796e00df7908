"""Pruning in a report: what went, as a sentence, a table and bars."""

from dataclasses import dataclass

from markupsafe import Markup

from tersor.measure.parts.pruning import Pruning, Width, names_of, summary
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
    """All groups, in the network's order, then the ranks of layers."""
    top = max((w.before for w in (*pruning.widths, *pruning.ranks)), default=1)
    found = [Row(names_of(w), w.before, w.after, _drawn(w, top)) for w in pruning.widths]
    return found + [Row(names_of(w), w.before, w.after, _drawn(w, top, rank=True)) for w in pruning.ranks]


def _drawn(width: Width, top: int, *, rank: bool = False) -> Markup:
    if rank:
        words = _("rank {before} before, {after} after", before=width.before, after=width.after)
    else:
        words = _("{before} channels before, {after} after", before=width.before, after=width.after)
    return svg.twin_bar(width.before, width.after, top, words)


def grid(pruning: Pruning) -> Grid:
    """The table for a terminal: the groups that lost the largest shares."""
    grid = Grid(
        Column(_("narrower")), Column(_("before"), right=True), Column(_("after"), right=True),
        Column(_("left"), right=True, drop=1), ruled=True,
    )  # fmt: skip
    narrower = [w for w in (*pruning.widths, *pruning.ranks) if w.after < w.before]
    lost = sorted(narrower, key=lambda w: w.after / w.before)
    for width in lost[:_ROWS]:
        share = f"{100 * width.after / width.before:.0f} %"
        grid.add(names_of(width), str(width.before), str(width.after), share)
    if len(lost) > _ROWS:
        grid.add(_("and {count} more", count=len(lost) - _ROWS), "", "", "")
    return grid
