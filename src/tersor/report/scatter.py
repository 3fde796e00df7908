"""Size and latency against the metric, one point per run, with what chance makes of it and the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from tersor.inert import plain
from tersor.report import svg
from tersor.report.figures import Figure
from tersor.words import _, said, shown

# What is to be small, by its role.
COSTS = {"size": said("size on disk"), "latency": said("latency")}
# Of the plot in text, in letters.
_WIDE, _HIGH = 48, 9
# Where the number of a point stands, as shares of the drawing: above, below, right, left; the first that is free.
_SIDES = ((0, -14), (0, 22), (16, 4), (-16, 4))
# Of the drawing, in percent: points nearer than this hide each other's numbers.
_NEAR = (4.5, 9.0)


@dataclass(frozen=True)
class TradeOff:
    """Two figures of several runs, without those that lack one: ``x`` is to be small, ``y`` the metric.

    ``cost`` says what ``x`` is; ``names`` are the runs', and ``numbers`` their places, from 1, among all runs.
    """

    cost: str
    names: tuple[str, ...]
    numbers: tuple[int, ...]
    x: tuple[Figure, ...]
    y: tuple[Figure, ...]

    @property
    def title(self) -> str:
        """What is drawn."""
        return _("{metric} against {cost}", metric=shown(self.y[0].name), cost=shown(self.cost))

    def front(self) -> tuple[int, ...]:
        """The indices of runs that no other beats in one figure without losing in the other, by rising ``x``.

        >>> x, y = ([Figure("", v, "", way) for v in found] for found, way in (((1, 2, 3), False), ((5, 9, 8), True)))
        >>> TradeOff("size", ("a", "b", "c"), (1, 2, 3), tuple(x), tuple(y)).front()
        (0, 1)
        """
        every = range(len(self.x))
        unbeaten = (k for k in every if not any(self._beats(other, k) for other in every))
        return tuple(sorted(unbeaten, key=lambda k: (number(self.x[k]), k)))

    def _beats(self, one: int, other: int) -> bool:
        x, y = number(self.x[one]) - number(self.x[other]), number(self.y[one]) - number(self.y[other])
        y = y if self.y[0].higher_is_better else -y
        return x <= 0 <= y and (x, y) != (0, 0)

    def sentence(self) -> str:
        """The runs of the front."""
        names = ", ".join(self.names[k] for k in self.front())
        return _("Best trade-offs of {cost} and {metric} (Pareto front): {names}", cost=shown(self.cost),
                 metric=shown(self.y[0].name), names=names)  # fmt: skip


def number(figure: Figure) -> float:
    """The value of a figure that has one."""
    assert isinstance(figure.value, int | float)
    return float(figure.value)


def trade_offs(runs: Sequence[str], figures: Mapping[str, Sequence[Figure]]) -> list[TradeOff]:
    """Of size and of latency with the metric, where two runs or more have both.

    Args:
        figures: those of each role (``size``, ``latency``, ``metric``), one per run.
    """
    found = []
    for role, cost in COSTS.items():
        x, y = figures.get(role), figures.get("metric")
        if x is None or y is None:
            continue
        known = [k for k in range(len(runs)) if all(isinstance(f[k].value, int | float) for f in (x, y))]
        if len(known) > 1:
            names, numbers = tuple(runs[k] for k in known), tuple(k + 1 for k in known)
            found.append(TradeOff(cost, names, numbers, tuple(x[k] for k in known), tuple(y[k] for k in known)))
    return found


@dataclass(frozen=True)
class Axis:
    """An axis with round ends."""

    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[Figure]) -> "Axis":
        """Around the values, with a quarter of their span on either side; intervals may end beyond it.

        Values that are equal but for rounding have the span of their intervals. No share is below 0 or above 1.

        >>> Axis.of([Figure("", v) for v in (0.912, 0.918)])
        Axis(low=0.91, high=0.92)
        >>> Axis.of([Figure("", 0.99, "%", interval=(0.98, 1.0))] * 2)
        Axis(low=0.98, high=1.0)
        >>> Axis.of([Figure("", v) for v in (1.0, 1.0000000000000002)])
        Axis(low=0.97, high=1.03)
        """
        values = [number(f) for f in figures]
        ends = [end for f in figures for end in f.interval or () if math.isfinite(end)]
        span, size = max(values) - min(values), max(map(abs, values))
        if span <= 1e-9 * size:  # equal but for rounding
            span = 2 * (max(ends) - min(ends) if ends else 0.0) or size / 10 or 1.0
        low, high = min(values) - span / 4, max(values) + span / 4
        least = (high - low) / 10
        step = 10.0 ** math.floor(math.log10(least))
        step *= next(k for k in (1, 2, 5, 10) if k * step >= least)
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        if min(values) >= 0:
            low = max(low, 0.0)
        if figures[0].unit == "%" and max(values) <= 1:
            high = min(high, 1.0)
        return cls(float(f"{low:.12g}"), float(f"{high:.12g}"))

    def at(self, value: float) -> float:
        """The place of a value in percent, within the axis."""
        return 100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def labels(self, figure: Figure) -> tuple[str, str, str]:
        """Its beginning, middle and end, written as the figure is."""
        values = (self.low, (self.low + self.high) / 2, self.high)
        first, middle, last = (Figure("", value, figure.unit).text for value in values)
        return first, middle, last


def drawing(found: TradeOff, links: Sequence[str]) -> dict[str, object]:
    """The scatter for a page: the picture, and the words of its axes.

    Places are percentages, so that the picture fills any width and its text is never scaled.
    """
    across, up = Axis.of(found.x), Axis.of(found.y)
    places = [(across.at(number(x)), 100 - up.at(number(y))) for x, y in zip(found.x, found.y, strict=True)]
    front = found.front()
    shapes = [svg.shape('<line x1="0" x2="100%" y1="{y}%" y2="{y}%"/>', y=y) for y in (0, 25, 50, 75)]
    shapes.append(svg.shape('<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"/>'))
    for a, b in pairwise(front):
        (x, y), (right, top) = places[a], places[b]
        shapes.append(svg.shape(_LINE, kind="front", x1=x, x2=right, y1=y, y2=y))
        shapes.append(svg.shape(_LINE, kind="front", x1=right, x2=right, y1=y, y2=top))
    for k, (x, y) in enumerate(places):
        if (ends := found.x[k].interval) is not None:
            shapes.append(svg.shape(_LINE, kind="spread", x1=across.at(ends[0]), x2=across.at(ends[1]), y1=y, y2=y))
        if (ends := found.y[k].interval) is not None:
            low, high = (100 - up.at(end) for end in ends)
            shapes.append(svg.shape(_LINE, kind="spread", x1=x, x2=x, y1=low, y2=high))
    for k, (x, y) in enumerate(places):
        shapes.append(_point(found, k, (x, y), k in front, places[:k], links[found.numbers[k] - 1]))
    whole = Markup('<svg class="scatter" role="group" aria-label="{}">{}</svg>').format(
        plain(found.title), Markup().join(shapes)
    )
    return {"title": found.title, "drawing": whole, "across": across.labels(found.x[0]), "up": up.labels(found.y[0]),
            "sentence": found.sentence()}  # fmt: skip


_LINE = '<line class="{kind}" x1="{x1}%" x2="{x2}%" y1="{y1}%" y2="{y2}%"/>'
_POINT = (
    '<{tag}{link} class="point{kind}" aria-label="{words}"><circle cx="{x}%" cy="{y}%" r="6.5"/>'
    '<text x="{x}%" y="{y}%" dx="{dx}" dy="{dy}" text-anchor="middle">{number}</text></{tag}>'
)


def _point(
    found: TradeOff, k: int, place: tuple[float, float], best: bool, before: Sequence[tuple[float, float]], link: str
) -> Markup:
    near = sum(all(abs(a - b) < n for a, b, n in zip(place, other, _NEAR, strict=True)) for other in before)
    dx, dy = _SIDES[near % len(_SIDES)]
    words = f"{found.numbers[k]} {found.names[k]}: {found.x[k].text}, {found.y[k].text}"
    form = _POINT.replace("{tag}", "a" if link else "g").replace("{link}", ' href="{href}"' if link else ' role="img"')
    return svg.shape(form, kind=" best" if best else "", words=words, x=place[0], y=place[1], dx=dx, dy=dy,
                     number=found.numbers[k], href=link)  # fmt: skip


def plot(found: TradeOff) -> str:
    """The scatter in letters: every run a number, those of the front in brackets."""
    across, up = Axis.of(found.x), Axis.of(found.y)
    front, rows = found.front(), [[" "] * _WIDE for _ in range(_HIGH)]
    for k in sorted(range(len(found.x)), key=lambda k: k in front):
        mark = f"[{found.numbers[k]}]" if k in front else f" {found.numbers[k]} "
        column = round(across.at(number(found.x[k])) / 100 * (_WIDE - len(mark)))
        row = round((100 - up.at(number(found.y[k]))) / 100 * (_HIGH - 1))
        rows[row][column : column + len(mark)] = mark
    low, middle, high = up.labels(found.y[0])
    names = {0: high, _HIGH // 2: middle, _HIGH - 1: low}
    room = max(map(len, names.values()))
    lines = [f"{names.get(k, ''):>{room}} │{''.join(row)}".rstrip() for k, row in enumerate(rows)]
    first, half, last = across.labels(found.x[0])
    ends = first + half.center(_WIDE - len(first) - len(last)) + last
    return "\n".join([found.title, *lines, f"{'':>{room}} └{'─' * _WIDE}", f"{'':>{room}}  {ends}"])
