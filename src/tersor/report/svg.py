"""Drawings as inline SVG: shapes only, stretched to the width they get; the words stand beside them in HTML.

Every drawing is 100 wide in its own units, so that no text is ever scaled on a small screen.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from tersor.measure.formatting import plain

COLUMNS = 96  # of a histogram: finer than that is not seen


def bar(
    value: float, top: float, label: str, *, kind: str = "", spread: tuple[float, float] | None = None
) -> Markup:
    """One horizontal bar, `top` being the full width, with whiskers from `spread`.

    >>> print(bar(50, 100, "half"))
    <svg ...><title>half</title><rect class="bar " x="0" y="0" width="50" height="12"/></svg>
    """
    shapes = [f'<rect class="bar {kind}" x="0" y="0" width="{_along(value, 0, top)}" height="12"/>']
    if spread is not None:
        low, high = (_along(bound, 0, top) for bound in spread)
        shapes.append(f'<path class="whisker" d="M{low} 6H{high}M{low} 3V9M{high} 3V9"/>')
    return _svg(label, 12, shapes)


def twin_bar(
    local: float | None, accumulated: float | None, top: float, label: str, *, kind: str = ""
) -> Markup:
    """A layer's two SQNRs: the wide pale bar is local, the narrow dark one inside it accumulated."""
    shapes = []
    if local is not None:
        shapes.append(f'<rect class="bar pale {kind}" width="{_along(local, 0, top)}" height="12"/>')
    if accumulated is not None:
        shapes.append(f'<rect class="bar {kind}" y="4" width="{_along(accumulated, 0, top)}" height="4"/>')
    return _svg(label, 12, shapes)


def profile(
    local: Sequence[float | None],
    accumulated: Sequence[float | None],
    marked: Sequence[int],
    top: float,
    label: str,
) -> Markup:
    """Both SQNRs over the depth of the network, a grid line every 10 dB, a mark where a layer fell back."""
    shapes = [f'<path class="grid" d="M0 {_down(level, top)}H100"/>' for level in range(0, int(top) + 1, 10)]
    shapes += [f'<path class="mark" d="M{_place(at, len(local))} 0V100"/>' for at in marked]
    shapes += [
        f'<path class="line pale" d="{_line(local, top)}"/>',
        f'<path class="line" d="{_line(accumulated, top)}"/>',
    ]
    return _svg(label, 100, shapes)


def histogram(bins: Sequence[float], counts: Sequence[int], low: float, high: float, label: str) -> Markup:
    """Counts over an axis from `low` to `high`, their height logarithmic, as one filled outline."""
    step = math.ceil(len(counts) / COLUMNS)
    merged = [sum(counts[at : at + step]) for at in range(0, len(counts), step)]
    edges = [bins[min(at * step, len(counts))] for at in range(len(merged) + 1)]
    top = math.log1p(max(merged))
    outline = "".join(
        f"V{_down(math.log1p(count), top)}H{_along(right, low, high)}"
        for count, right in zip(merged, edges[1:], strict=True)
    )
    return _svg(label, 100, [f'<path class="area" d="M{_along(edges[0], low, high)} 100{outline}V100Z"/>'])


def channels(reach: Sequence[float], middle: float, marked: Sequence[int], label: str) -> Markup:
    """The reach of each channel in order on a logarithmic axis, a grid line every decade, the middle one's a line.

    The ``marked`` stand out, and however many channels there are, the largest of those that share a column is seen.
    """
    low, high = decades(reach)
    count, wanted = len(reach), set(marked)
    wide = max(1.0, count / COLUMNS)
    shapes = [f'<path class="grid" d="M0 {_down(k - low, high - low)}H100"/>' for k in range(low, high + 1)]
    for kind, chosen in (("", set(range(count)) - wanted), ("fell", wanted)):
        tall: dict[int, float] = {}
        for k in chosen:
            tall[int(k / wide)] = max(tall.get(int(k / wide), 0.0), reach[k])
        outline = "".join(
            f"M{_along(at * wide, 0, count)} 100V{_down(math.log10(value) - low, high - low)}"
            f"H{_along(at * wide + wide, 0, count)}V100"
            for at, value in sorted(tall.items())
            if value > 0
        )
        shapes.append(f'<path class="area {kind}" d="{outline}"/>')
    if middle > 0:
        shapes.append(f'<path class="whisker" d="M0 {_down(math.log10(middle) - low, high - low)}H100"/>')
    return _svg(label, 100, shapes)


def decades(reach: Sequence[float]) -> tuple[int, int]:
    """The powers of ten between which positive values lie, at most six apart: what is smaller lies at the bottom.

    >>> decades([0.0, 0.3, 250.0]), decades([0.0])
    ((-1, 3), (0, 1))
    """
    seen = [value for value in reach if value > 0]
    if not seen:
        return 0, 1
    high = math.floor(math.log10(max(seen))) + 1
    return max(math.floor(math.log10(min(seen))), high - 6), high


def bracket(first: float, last: float, low: float, high: float, label: str, *, kind: str = "") -> Markup:
    """A range on the same axis: a line with two ends."""
    left, right = _along(first, low, high), _along(last, low, high)
    return _svg(label, 12, [f'<path class="bracket {kind}" d="M{left} 2V10M{left} 6H{right}M{right} 2V10"/>'])


def _svg(label: str, height: int, shapes: Sequence[str]) -> Markup:
    title = escape(plain(label))
    # The shapes are numbers and our own class names; only the label is foreign.
    return Markup(
        f'<svg role="img" aria-label="{title}" viewBox="0 0 100 {height}" preserveAspectRatio="none">'
        f"<title>{title}</title>{''.join(shapes)}</svg>"
    )


def _along(value: float, low: float, high: float) -> str:
    """Where a value lies from 0 to 100; whatever has no place there lies at 0."""
    share = (value - low) / (high - low) if high > low else 0.0
    return f"{100 * min(1.0, max(0.0, share)):.2f}".rstrip("0").rstrip(".") if math.isfinite(share) else "0"


def _down(value: float, top: float) -> str:
    return f"{100 - float(_along(value, 0, top)):g}"


def _place(at: int, count: int) -> str:
    return _along(at + 0.5, 0, count)


def _line(values: Sequence[float | None], top: float) -> str:
    """A path that steps from layer to layer and stops where nothing is known."""
    steps, pen = [], "M"
    for at, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        left, right = _along(at, 0, len(values)), _along(at + 1, 0, len(values))
        steps.append(f"{pen}{left} {_down(value, top)}H{right}")
        pen = "L"
    return "".join(steps)
