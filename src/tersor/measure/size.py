"""Why a file did not shrink: which bytes of it are weights, and which of those stayed in float."""

from collections.abc import Iterable

from tersor.inert import plain
from tersor.measure.formatting import size_text
from tersor.measure.schema import Layer, Report
from tersor.words import _


def in_float(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers whose weights are stored in FP32."""
    return tuple(x for x in layers if x.weight_bytes and x.weight_format in (None, "fp32"))


def bytes_of(layers: Iterable[Layer]) -> int:
    """The bytes of all their weights."""
    return sum(layer.weight_bytes or 0 for layer in layers)


def listed(layers: Iterable[Layer], most: int = 3) -> str:
    """The names of the first layers."""
    names = [plain(layer.name) for layer in layers]
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def why_not_smaller(report: Report) -> tuple[str, str]:
    """Why the file did not shrink, empty if nothing tells, and what to try."""
    after, kept, weights = report.compressed.bytes, in_float(report.layers), bytes_of(report.layers)
    if after is not None and weights < after / 2:
        why = _("only {size} of it are weights, the rest is the graph", size=size_text(weights))
        return why, _("nothing: a network this small does not benefit in size")
    if len(kept) == sum(1 for x in report.layers if x.weight_bytes):
        return _("no weight is stored in fewer bits"), _("`tersor inspect` to see which layers are int8")
    if bytes_of(kept) > weights / 2:
        why = _("{size} of it are weights that stayed in float ({names})", size=size_text(bytes_of(kept)),
                names=listed(kept))  # fmt: skip
        return why, _("the recipe int8-dynamic, if they are recurrent layers or embeddings; `tersor inspect` tells why")
    return "", _("`tersor inspect` to see which layers are int8")
