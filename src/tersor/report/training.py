"""Training in a report: what it led to, its epochs as a table, and its curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from tersor.inert import plain
from tersor.measure.parts.training import Training, loss_text, summary
from tersor.report import svg
from tersor.report.figures import Figure
from tersor.report.scatter import Axis
from tersor.report.tables.grid import Column, Grid
from tersor.words import _, shown

# Epochs that a terminal shows, of many; epochs up to which the points of a curve are drawn, too.
_ROWS, _POINTS = 8, 60
_LINE = '<line class="{kind}" x1="{x1}%" x2="{x2}%" y1="{y1}%" y2="{y2}%"/>'
_DOT = '<g class="point best" role="img" aria-label="{words}"><circle cx="{x}%" cy="{y}%" r="4"/></g>'


@dataclass(frozen=True)
class Curve:
    """A value over the epochs, drawn, with the words of its axes from their beginning to their end."""

    title: str
    about: str
    drawing: Markup
    up: tuple[str, ...]
    across: tuple[str, ...]


def sentence(training: Training) -> str:
    """What training led to, with a capital."""
    words = summary(training)
    return words[:1].upper() + words[1:]


def rows(training: Training) -> list[tuple[str, str, str, str, str]]:
    """Epoch, loss, held-out loss, learning rate and time, from before training to its result."""
    epochs = [
        (str(e.number), loss_text(e.loss), _held_out(e.held_out), f"{e.rate:.2g}", f"{e.seconds:.1f} s")
        for e in training.epochs
    ]
    before = (_("before"), "", loss_text(training.before), "", "")
    return [before, *epochs, (_("trained"), "", loss_text(training.after), "", "")]


def _held_out(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def grid(training: Training) -> Grid:
    """The table for a terminal; of many epochs some, evenly spread."""
    grid = Grid(
        Column(_("epoch")),
        Column(_("loss"), right=True),
        Column(_("held-out loss"), right=True),
        Column(_("learning rate"), right=True, drop=2),
        Column(_("time"), right=True, drop=1),
        ruled=True,
    )
    before, *epochs, after = rows(training)
    for row in (before, *(epochs[k] for k in _spread(len(epochs))), after):
        grid.add(*row)
    return grid


def _spread(count: int) -> list[int]:
    """At most ``_ROWS`` places, the first and the last among them.

    >>> _spread(3), _spread(15)
    ([0, 1, 2], [0, 2, 4, 6, 8, 10, 12, 14])
    """
    if count <= _ROWS:
        return list(range(count))
    return [round(k * (count - 1) / (_ROWS - 1)) for k in range(_ROWS)]


def curves(training: Training) -> list[Curve]:
    """Loss, held-out loss and learning rate over the epochs; one without two values is left out."""
    epochs = training.epochs
    held_out = [(0, training.before), *((e.number, e.held_out) for e in epochs)]
    about = _("{loss}; dashed: before training", loss=shown(training.held_out))
    found = [
        _curve(_("Held-out loss"), about[:1].upper() + about[1:], held_out, training.before),
        _curve(_("Training loss"), _("Mean of the epoch"), [(e.number, e.loss) for e in epochs]),
        _curve(_("Learning rate"), _("At the end of the epoch"), [(e.number, e.rate) for e in epochs]),
    ]
    return [curve for curve in found if curve is not None]


def _curve(
    title: str, about: str, values: Sequence[tuple[int, float | None]], baseline: float | None = None
) -> Curve | None:
    """A line through the values; of many also points, which say their value, and a dashed line at a baseline."""
    known = [(number, value) for number, value in values if value is not None]
    if len(known) < 2:
        return None
    figures, (first, last) = [Figure("", value) for _number, value in known], (known[0][0], known[-1][0])
    axis = Axis.of(figures)
    places = [(100 * (number - first) / (last - first), 100 - axis.at(value)) for number, value in known]
    shapes = [svg.shape(_LINE, kind="", x1=0, x2=100, y1=y, y2=y) for y in (0, 50)]
    shapes.append(svg.shape(_LINE, kind="axis", x1=0, x2=100, y1=100, y2=100))
    if baseline is not None:
        y = 100 - axis.at(baseline)
        shapes.append(svg.shape(_LINE, kind="front", x1=0, x2=100, y1=y, y2=y))
    for (x, y), (right, end) in pairwise(places):
        shapes.append(svg.shape(_LINE, kind="drawn", x1=x, x2=right, y1=y, y2=end))
    if len(known) <= _POINTS:
        for (number, value), (x, y) in zip(known, places, strict=True):
            words = _("epoch {number}: {value}", number=number, value=f"{value:.4g}")
            shapes.append(svg.shape(_DOT, words=words, x=x, y=y))
    label = _("{title}: {first} → {last}", title=title, first=f"{known[0][1]:.4g}", last=f"{known[-1][1]:.4g}")
    drawing = Markup('<svg class="scatter curve" role="group" aria-label="{}">{}</svg>').format(
        plain(label), Markup().join(shapes)
    )
    across = tuple(_("epoch {number}", number=number) if number else _("before") for number in (first, last))
    return Curve(title, about, drawing, axis.labels(figures[0]), across)
