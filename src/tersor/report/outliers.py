"""Outliers as a table in a terminal and as an HTML page of charts, worst layers first."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from tersor.measure.formatting import db_text
from tersor.measure.outliers import ADVICE, ENOUGH, LEAST, OUTLYING, LayerOutliers
from tersor.report import svg
from tersor.report.shell import rendered
from tersor.report.tables.grid import Column, Grid
from tersor.words import _, said, shown

_STYLES = {"fine": "", "smooth": "cyan", "token": "cyan", "float": "yellow"}
_REMEDIES = {
    "fine": said("int8 with one scale"),
    "smooth": said("`smooth: on` in a static recipe; automatic for Transformers"),
    "token": said("the recipe int8-dynamic, or `granularity: token, range: dynamic`"),
    "float": said("a rule `keep: fp16` or, for linear layers, activations in int16"),
}


def table(layers: Sequence[LayerOutliers]) -> RenderableType:
    """A table of the layers, largest int8 error first, and the number of layers for each advice."""
    grid = Grid(
        Column(_("layer")),
        Column(_("advice")),
        Column(_("channel"), right=True, drop=5),
        Column(_("x median"), right=True, drop=3),
        Column(_("row"), right=True, drop=4),
        Column(_("kurtosis"), right=True, drop=6),
        Column("int8", right=True),
        Column(_("smoothed"), right=True, drop=1),
        Column(_("token"), right=True, drop=2),
    )
    for layer in _worst_first(layers):
        grid.add(
            layer.name,
            shown(ADVICE[layer.advice]),
            str(layer.worst),
            _number(layer.channel_ratio),
            _number(layer.row_ratio),
            _number(layer.kurtosis),
            *(_decibels(db) for db in (layer.tensor_db, layer.smoothed_db, layer.token_db)),
            style=_STYLES[layer.advice],
        )
    words = Text(
        "\n"
        + _(
            "channel: the one with the largest |x|, over the median channel; row: the largest token or position over "
            "the median one; dB: SQNR of the median row in int8; {enough} is enough, {least} the minimum",
            enough=f"{ENOUGH:.0f}", least=f"{LEAST:.0f}",
        )
    )  # fmt: skip
    counts = [
        Text(_("{advice} in {count} of {all} layers: {how}", advice=what, count=count, all=len(layers), how=how))
        for what, count, how in _summary(layers)
    ]
    return Group(grid, words, *counts)


def page(task: str, samples: int, layers: Sequence[LayerOutliers]) -> str:
    """The self-contained page as text, with one chart per layer."""
    return rendered(
        "outliers.html.j2",
        task=task,
        samples=samples,
        layers=[_chart(layer) for layer in _worst_first(layers)],
        summary=_summary(layers),
        alarms=any(layer.advice == "float" for layer in layers),
        enough=f"{ENOUGH:.0f}",
        least=f"{LEAST:.0f}",
        outlying=f"{OUTLYING:.0f}",
    )


def _chart(layer: LayerOutliers) -> dict[str, object]:
    magnitudes = layer.magnitude.tolist()
    low, high = svg.decades(magnitudes)
    words = _(
        "{name}: max|x| of {count} channels, the median {median}, the largest {largest} in channel {worst}",
        name=layer.name, count=len(magnitudes), median=f"{layer.median:.4g}", largest=f"{max(magnitudes):.4g}",
        worst=layer.worst,
    )  # fmt: skip
    marked = ", ".join(map(str, layer.outlying[:8])) + (" …" if len(layer.outlying) > 8 else "")
    return {
        "name": layer.name,
        "op": layer.op,
        "advice": shown(ADVICE[layer.advice]),
        "open": layer.advice != "fine",
        "alarm": layer.advice == "float",
        "reason": _capital(shown(layer.reason)),
        "drawing": svg.channels(magnitudes, layer.median, layer.outlying, words),
        "low": f"{10.0**low:g}",
        "high": f"{10.0**high:g}",
        "last": len(magnitudes) - 1,
        "marked": marked,
        "facts": [
            (_("largest channel"), f"{layer.worst}, {max(magnitudes):.4g}"),
            (_("median channel"), f"{layer.median:.4g}"),
            (_("largest row over median"), _number(layer.row_ratio)),
            (_("kurtosis"), _number(layer.kurtosis) or _("constant")),
        ],
        "ways": [
            ("int8", _decibels(layer.tensor_db)),
            (_("smoothed"), _decibels(layer.smoothed_db)),
            (_("token"), _decibels(layer.token_db)),
        ],
        "channel_ratio": _number(layer.channel_ratio),
        "row_ratio": _number(layer.row_ratio),
        "kurtosis": _number(layer.kurtosis),
    }


def _worst_first(layers: Sequence[LayerOutliers]) -> list[LayerOutliers]:
    return sorted(layers, key=lambda layer: layer.tensor_db)


def _summary(layers: Sequence[LayerOutliers]) -> list[tuple[str, int, str]]:
    """Each given advice, its number of layers, and its remedy."""
    counts = Counter(layer.advice for layer in layers)
    return [(shown(words), counts[way], shown(_REMEDIES[way])) for way, words in ADVICE.items() if counts[way]]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1e5 else f"{value:.1e}"


def _decibels(value: float | None) -> str:
    return "–" if value is None else db_text(value)
