"""Outliers as a table in a terminal and as an HTML page of charts, worst layers first."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tersor.inert import plain
from tersor.measure.formatting import db_text
from tersor.measure.outliers import ADVICE, ENOUGH, LEAST, OUTLYING, LayerOutliers
from tersor.report import svg
from tersor.report.shell import rendered

_STYLES = {"fine": "", "smooth": "cyan", "token": "cyan", "float": "yellow"}
_REMEDIES = {
    "fine": "int8 with one scale",
    "smooth": "`smooth: on` in a static recipe; automatic for Transformers",
    "token": "the recipe int8-dynamic, or `granularity: token, range: dynamic`",
    "float": "a rule `keep: fp16` or, for linear layers, activations in int16",
}


def table(layers: Sequence[LayerOutliers]) -> RenderableType:
    """A table of the layers, largest int8 error first, and the number of layers for each advice."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("layer", "advice", "channel", "x median", "row", "kurtosis", "int8", "smoothed", "token"):
        grid.add_column(name, overflow="fold", justify="left" if name in ("layer", "advice") else "right")
    for layer in _worst_first(layers):
        grid.add_row(
            Text(plain(layer.name)),
            ADVICE[layer.advice],
            str(layer.worst),
            _number(layer.channel_ratio),
            _number(layer.row_ratio),
            _number(layer.kurtosis),
            *(_decibels(db) for db in (layer.tensor_db, layer.smoothed_db, layer.token_db)),
            style=_STYLES[layer.advice],
        )
    words = Text(
        "\nchannel: the one with the largest |x|, over the median channel; row: the largest token or position over "
        f"the median one; dB: SQNR of the median row in int8; {ENOUGH:.0f} is enough, {LEAST:.0f} the minimum"
    )
    counts = [Text(f"{count} of {len(layers)}: {what}: {how}") for what, count, how in _summary(layers)]
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
    words = (
        f"{layer.name}: max|x| of {len(magnitudes)} channels, the median {layer.median:.4g}, the largest "
        f"{max(magnitudes):.4g} in channel {layer.worst}"
    )
    marked = ", ".join(map(str, layer.outlying[:8])) + (" …" if len(layer.outlying) > 8 else "")
    return {
        "name": layer.name,
        "op": layer.op,
        "advice": ADVICE[layer.advice],
        "open": layer.advice != "fine",
        "alarm": layer.advice == "float",
        "reason": layer.reason[:1].upper() + layer.reason[1:],
        "drawing": svg.channels(magnitudes, layer.median, layer.outlying, words),
        "low": f"{10.0**low:g}",
        "high": f"{10.0**high:g}",
        "last": len(magnitudes) - 1,
        "marked": marked,
        "facts": [
            ("largest channel", f"{layer.worst}, {max(magnitudes):.4g}"),
            ("median channel", f"{layer.median:.4g}"),
            ("largest row over median", _number(layer.row_ratio)),
            ("kurtosis", _number(layer.kurtosis) or "constant"),
        ],
        "ways": [
            ("int8", _decibels(layer.tensor_db)),
            ("smoothed", _decibels(layer.smoothed_db)),
            ("token", _decibels(layer.token_db)),
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
    return [(words, counts[way], _REMEDIES[way]) for way, words in ADVICE.items() if counts[way]]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1e5 else f"{value:.1e}"


def _decibels(value: float | None) -> str:
    return "–" if value is None else db_text(value)
