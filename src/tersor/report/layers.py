"""The layers of a report for its page: one row each, the details behind it, and the picture of the network."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tersor.measure.formatting import EXACT, db_text, number_text, precision_text, size_text, time_text
from tersor.measure.headline import fallbacks
from tersor.measure.onestep import finding_of
from tersor.measure.schema import CheckedValue, Histogram, Layer, Report
from tersor.report import svg
from tersor.report.advice import rule_of
from tersor.report.graph import edges_of, layout
from tersor.words import _, plural, shown

# Ends of the classes of errors in dB, the worst first.
LEVELS = (10.0, 20.0, 30.0, 40.0)
# Of the picture, in pixels: a node, and the distance between two.
_WIDTH, _HEIGHT, _APART, _BELOW, _EDGE = 126, 38, 34, 16, 12
_LETTERS = 17  # of a name in a node
COLUMNS = 40  # of a histogram


@dataclass(frozen=True)
class Row:
    """A row of the table of layers; `at` is its place in the network."""

    at: int
    layer: Layer
    fell: bool
    drawing: Markup
    step: str
    facts: tuple[tuple[str, str], ...]
    rule: tuple[str, ...]
    weights: dict[str, object] | None
    reads: tuple[tuple[int, str], ...]

    @property
    def decibels(self) -> str:
        """Both errors, as the table shows them."""
        return f"{db_text(self.layer.sqnr_db)} / {db_text(self.layer.accumulated_sqnr_db)}"

    @property
    def worst_first(self) -> tuple[bool, float]:
        """The key by which rows are sorted: fallbacks, then the largest error, unknown last."""
        return not self.fell, EXACT + 1 if self.layer.sqnr_db is None else self.layer.sqnr_db


def rows(report: Report) -> list[Row]:
    """One for every layer, the worst first."""
    fell, top = fallbacks(report), top_of(report.layers)
    checked = {} if report.one_step is None else {step.name: step for step in report.one_step.steps}
    sites = {site.site: k for k, site in enumerate(report.histograms)}
    total = sum(layer.milliseconds or 0.0 for layer in report.layers)
    found = []
    for at, layer in enumerate(report.layers):
        step = checked.get(layer.name)
        kind = "fell" if layer in fell else ""
        drawing = svg.twin_bar(layer.sqnr_db, layer.accumulated_sqnr_db, top, kind=kind)
        facts = tuple(_facts(layer, step, total))
        weights = None if layer.weights is None else values(layer.weights)
        reads = tuple((sites[name], name) for name in layer.reads if name in sites)
        rule = tuple(rule_of(report, layer).splitlines())
        found.append(Row(at, layer, layer in fell, drawing, _step(step), facts, rule, weights, reads))
    return sorted(found, key=lambda row: row.worst_first)


def _step(step: CheckedValue | None) -> str:
    if step is None:
        return "–"
    return "?" if step.verdict == "unchecked" else number_text(round(step.largest, 1))


def _facts(layer: Layer, step: CheckedValue | None, total: float) -> list[tuple[str, str]]:
    share = f" ({100 * layer.milliseconds / total:.1f} %)" if layer.milliseconds and total else ""
    weights = "" if not layer.weight_format else f"{layer.weight_format}, {size_text(layer.weight_bytes)}"
    precision = _("planned {planned}, ran in {executed}", planned=layer.planned,
                  executed=precision_text(layer.executed))  # fmt: skip
    errors = _("local {local}, accumulated {accumulated}", local=_decibels(layer.sqnr_db),
               accumulated=_decibels(layer.accumulated_sqnr_db))  # fmt: skip
    found = [
        (_("Precision"), precision),
        (_("Why"), shown(layer.note or "")),
        (_("Weights"), weights),
        (_("SQNR"), errors),
        (_("One step"), "" if step is None else shown(finding_of(step))),
        (_("Time"), f"{time_text(layer.milliseconds)}{share}"),
        (_("Reads"), ", ".join(layer.inputs)),
    ]
    return [(name, value) for name, value in found if value]


def _decibels(value: float | None) -> str:
    text = db_text(value)
    return text if value is None or value >= EXACT else f"{text} dB"


def top_of(layers: Sequence[Layer]) -> float:
    """The end of the dB axis: the multiple of 10 above all inexact values."""
    both = [value for layer in layers for value in (layer.sqnr_db, layer.accumulated_sqnr_db)]
    known = [value for value in both if value is not None and value < EXACT]
    return max(10.0, 10.0 * -(-max(known, default=10.0) // 10))


def profile(layers: Sequence[Layer], fell: Collection[Layer]) -> tuple[Markup, int] | None:
    """The two errors over the network's depth, and the end of their axis; None if no layer adds noise."""
    # Skip layers that add no noise (a ReLU fused into a convolution), where the line would jump to the top.
    noisy = [(at, x) for at, x in enumerate(layers) if x.sqnr_db != EXACT or x in fell]
    if not any(x.sqnr_db is not None or x.accumulated_sqnr_db is not None for at, x in noisy):
        return None
    top = top_of([x for at, x in noisy])
    marked = [k for k, (at, x) in enumerate(noisy) if x in fell]
    local = [None if x.sqnr_db == EXACT else x.sqnr_db for at, x in noisy]
    accumulated = [x.accumulated_sqnr_db for at, x in noisy]
    words = plural("SQNR of {count} layer, local and accumulated, 0 to {top} dB",
                   "SQNR of {count} layers, local and accumulated, 0 to {top} dB",
                   len(noisy), top=int(top))  # fmt: skip
    return svg.profile(local, accumulated, marked, top, words, places=[at for at, x in noisy]), int(top)


def values(site: Histogram) -> dict[str, object]:
    """The values of a site for the page: in words, and as numbers from which the script draws."""
    found, (edges, counts) = site.channels, columns(site)
    numbers = (edges[0], min(edges[1] - edges[0], sys.float_info.max), edges[-1])
    lines = [(name, f"{number_text(a)} … {number_text(b)}") for name, (a, b) in site.thresholds.items()]
    first, last = number_text(site.bins[0]), number_text(site.bins[-1])
    words = _("{count:,} values from {low} to {high}", count=sum(site.counts), low=first, high=last)
    if found is None:
        return {"words": words, "bins": _numbers((*numbers, *counts)), "channels": "", "lines": lines}
    low = found.low if any(found.low) else found.low[:1]
    ends = number_text(min(found.low)), number_text(max(found.high))
    ranges = plural("{count} channel: {low} … {high}", "{count} channels: {low} … {high}", found.count,
                    low=ends[0], high=ends[1])  # fmt: skip
    digits = 3 if found.count == len(found.high) else 2  # of a channel, or of a run of channels
    channels = f"{found.count}|{_numbers(low, digits)}|{_numbers(found.high, digits)}"
    return {"words": words, "bins": _numbers((*numbers, *counts)), "channels": channels, "lines": lines,
            "ranges": ranges}  # fmt: skip


def columns(site: Histogram) -> tuple[list[float], list[int]]:
    """The edges and counts of at most COLUMNS columns, each of as many bins as the others but for the last."""
    count = len(site.counts)
    step = -(-count // COLUMNS)
    sums = [sum(site.counts[at : at + step]) for at in range(0, count, step)]
    return [site.bins[min(at * step, count)] for at in range(len(sums) + 1)], sums


def _numbers(found: Sequence[float], digits: int = 4) -> str:
    return " ".join(str(x) if isinstance(x, int) else number_text(x, f".{digits}g") for x in found)


def network(report: Report) -> Markup | None:
    """The picture of the network; None for a report that does not know what a layer reads."""
    inputs = {layer.name: layer.inputs for layer in report.layers}
    if not any(inputs.values()):
        return None
    nodes, edges = edges_of(list(inputs), inputs)
    first, found = len(nodes) - len(inputs), layout(edges, len(nodes))
    fell = {layer.name for layer in fallbacks(report)}
    shapes = [svg.shape('<path class="edge" d="{d}"/>', d=_line(line)) for line in found.lines]
    for k, (name, place) in enumerate(zip(nodes, found.nodes, strict=True)):
        x, y = _corner(place)
        if k < first:
            shapes.append(svg.shape(_OUTSIDE, x=x, y=y, name=_short(name)))
            continue
        layer = report.layers[k - first]
        shapes.append(
            svg.shape(
                _NODE, x=x, y=y, at=k - first, name=_short(name), op=layer.op, ran=layer.executed or "unknown",
                level=level(layer.sqnr_db), fell=" fell" if name in fell else "",
                said=precision_text(layer.executed),
            )
        )  # fmt: skip
    width = 2 * _EDGE + found.columns * (_WIDTH + _APART) - _APART
    height = 2 * _EDGE + found.rows * (_HEIGHT + _BELOW) - _BELOW
    label = plural("graph of {count} layer", "graph of {count} layers", len(inputs))
    return svg.picture(shapes, width, height, label)


_NODE = (
    '<a href="#layer-{at}" class="node p-{ran} e-{level}{fell}" '
    f'transform="translate({{x}} {{y}})"><rect width="{_WIDTH}" height="{_HEIGHT}" rx="5"/>'
    '<text x="9" y="16">{name}</text><text x="9" y="30">{op} · {said}</text></a>'
)
_OUTSIDE = (
    f'<g class="outside" transform="translate({{x}} {{y}})"><rect width="{_WIDTH}" height="{_HEIGHT}" rx="19"/>'
    f'<text x="{_WIDTH // 2}" y="23" text-anchor="middle">{{name}}</text></g>'
)


def level(db: float | None) -> str:
    """The class of an error: 0, the worst, to 4; `u` if it is unknown.

    >>> [level(x) for x in (5.0, 25.0, 150.0, None)]
    ['0', '2', '4', 'u']
    """
    return "u" if db is None else str(sum(db >= bound for bound in LEVELS))


def _corner(place: tuple[float, float]) -> tuple[float, float]:
    return _EDGE + place[0] * (_WIDTH + _APART), _EDGE + place[1] * (_HEIGHT + _BELOW)


def _line(places: Sequence[tuple[float, float]]) -> str:
    """From the right of the first node to the left of the last, level through the stops between."""
    corners = [_corner(place) for place in places]
    x, y = corners[0][0] + _WIDTH, corners[0][1] + _HEIGHT / 2
    parts, half = [f"M{x:.0f} {y:.0f}"], _APART / 2
    for k, (left, top) in enumerate(corners[1:], 2):
        down = top + _HEIGHT / 2
        parts.append(f"C{left - half:.0f} {y:.0f} {left - half:.0f} {down:.0f} {left:.0f} {down:.0f}")
        if k < len(corners):
            parts.append(f"H{left + _WIDTH:.0f}")
        y = down
    return "".join(parts)


def _short(name: str) -> str:
    """The end of a name, which tells it apart."""
    return name if len(name) <= _LETTERS else f"…{name[1 - _LETTERS :]}"
