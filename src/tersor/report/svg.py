"""Charts as inline SVG: shapes only, stretched to the available width, with all text outside in HTML.

Every chart is 100 units wide, so that no text is scaled on a small screen.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from tersor.inert import plain

COLUMNS = 96  # of channels; more would not be visible


def bar(
    value: float, top: float, label: str, *, kind: str = "", spread: tuple[float, float] | None = None
) -> Markup:
    """One horizontal bar, with `top` as the full width and whiskers from `spread`; one beyond `top` has no end mark.

    >>> print(bar(50, 100, "half"))
    <svg ...><rect class="bar" x="0" y="0" width="50" height="12"/></svg>
    """
    shapes = [f'<rect class="{f"bar {kind}".strip()}" x="0" y="0" width="{_along(value, 0, top)}" height="12"/>']
    if spread is not None:
        low, high = (_along(bound, 0, top) for bound in spread)
        end = f"M{high} 3V9" if spread[1] <= top else ""
        shapes.append(f'<path class="whisker" d="M{low} 6H{high}M{low} 3V9{end}"/>')
    return _svg(label, 12, shapes)


def twin_bar(
    local: float | None, accumulated: float | None, top: float, label: str = "", *, kind: str = ""
) -> Markup:
    """A layer's two SQNRs: local as a wide pale bar, accumulated as a narrow dark one inside it.

    Without a label it is no image of its own to a screen reader: its numbers stand beside it.
    """
    shapes, kind = [], f" {kind}" if kind else ""
    if local is not None:
        shapes.append(f'<rect class="bar pale{kind}" width="{_along(local, 0, top)}" height="12"/>')
    if accumulated is not None:
        shapes.append(f'<rect class="bar{kind}" y="4" width="{_along(accumulated, 0, top)}" height="4"/>')
    return _svg(label, 12, shapes)


def profile(
    local: Sequence[float | None],
    accumulated: Sequence[float | None],
    marked: Sequence[int],
    top: float,
    label: str,
    *,
    places: Sequence[int] = (),
) -> Markup:
    """Both SQNRs over the depth of the network, with a grid line every 10 dB and a mark for each fallback.

    `places` are for the script: which layer stands in which column.
    """
    shapes = [f'<path class="grid" d="M0 {_down(level, top)}H100"/>' for level in range(0, int(top) + 1, 10)]
    shapes += [f'<path class="mark" d="M{_centre(at, len(local))} 0V100"/>' for at in marked]
    shapes += [
        f'<path class="line pale" d="{_line(local, top)}"/>',
        f'<path class="line" d="{_line(accumulated, top)}"/>',
    ]
    return _svg(label, 100, shapes, f' data-places="{" ".join(map(str, places))}"' if places else "")


def channels(magnitudes: Sequence[float], median: float, marked: Sequence[int], label: str) -> Markup:
    """The magnitude of each channel on a logarithmic axis, with a grid line per decade and a line at the median.

    ``marked`` channels are highlighted; of the channels that share a column, the largest is shown.
    """
    low, high = decades(magnitudes)
    count, highlighted = len(magnitudes), set(marked)
    per_column = max(1.0, count / COLUMNS)
    shapes = [f'<path class="grid" d="M0 {_down(k - low, high - low)}H100"/>' for k in range(low, high + 1)]
    for kind, chosen in (("", set(range(count)) - highlighted), ("fell", highlighted)):
        height: dict[int, float] = {}
        for k in chosen:
            height[int(k / per_column)] = max(height.get(int(k / per_column), 0.0), magnitudes[k])
        outline = "".join(
            f"M{_along(at * per_column, 0, count)} 100V{_down(math.log10(value) - low, high - low)}"
            f"H{_along(at * per_column + per_column, 0, count)}V100"
            for at, value in sorted(height.items())
            if value > 0
        )
        shapes.append(f'<path class="area {kind}" d="{outline}"/>')
    if median > 0:
        shapes.append(f'<path class="whisker" d="M0 {_down(math.log10(median) - low, high - low)}H100"/>')
    return _svg(label, 100, shapes)


def decades(magnitudes: Sequence[float]) -> tuple[int, int]:
    """The powers of ten that enclose the positive values, at most six apart; smaller values lie at the bottom.

    >>> decades([0.0, 0.3, 250.0]), decades([0.0])
    ((-1, 3), (0, 1))
    """
    positive = [value for value in magnitudes if value > 0]
    if not positive:
        return 0, 1
    high = math.floor(math.log10(max(positive))) + 1
    return max(math.floor(math.log10(min(positive))), high - 6), high


def picture(shapes: Sequence[Markup], width: float, height: float, label: str) -> Markup:
    """A drawing of its own size, in which shapes may hold text and links; each of them is escaped by who made it."""
    title = escape(plain(label))
    return _ours(
        f'<svg class="picture" role="group" aria-label="{title}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">{"".join(shapes)}</svg>'
    )


def shape(form: str, **values: object) -> Markup:
    """A part of a picture from a form of ours; values are escaped and made plain.

    >>> print(shape('<text x="{x}">{name}</text>', x=1.5, name="<b>"))
    <text x="1.5">&lt;b&gt;</text>
    """
    texts = {k: f"{v:.6g}" if isinstance(v, float) else plain(str(v)) for k, v in values.items()}
    return _ours(form).format(**texts)


def _svg(label: str, height: int, shapes: Sequence[str], data: str = "") -> Markup:
    about = f'role="img" aria-label="{escape(plain(label))}"' if label else 'aria-hidden="true"'
    return _ours(
        f'<svg {about} viewBox="0 0 100 {height}" preserveAspectRatio="none"{data}>'
        f"{''.join(shapes)}</svg>"
    )


def _ours(text: str) -> Markup:
    # Numbers and fixed names; what is foreign in it has been escaped, or is by Markup.format.
    return Markup(text)  # noqa: S704


def _along(value: float, low: float, high: float) -> str:
    """The position of a value from 0 to 100, clamped; 0 if it is undefined."""
    share = (value - low) / (high - low) if high > low else 0.0
    return f"{100 * min(1.0, max(0.0, share)):.2f}".rstrip("0").rstrip(".") if math.isfinite(share) else "0"


def _down(value: float, top: float) -> str:
    return f"{100 - float(_along(value, 0, top)):g}"


def _centre(at: int, count: int) -> str:
    return _along(at + 0.5, 0, count)


def _line(values: Sequence[float | None], top: float) -> str:
    """A step path over the layers, interrupted at unknown values."""
    steps, pen = [], "M"
    for at, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        left, right = _along(at, 0, len(values)), _along(at + 1, 0, len(values))
        steps.append(f"{pen}{left} {_down(value, top)}H{right}")
        pen = "L"
    return "".join(steps)
