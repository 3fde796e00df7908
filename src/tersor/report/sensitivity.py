"""Sensitivities as a table in a terminal and as an HTML page, worst layers first."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from rich.console import Group, RenderableType
from rich.text import Text

from tersor.measure.choosing.sensitivity import KINDS, LayerCost, Stage
from tersor.measure.formatting import db_text
from tersor.report import svg
from tersor.report.shell import rendered
from tersor.report.tables.grid import Column, Grid
from tersor.words import _, shown

DECADES = 4
"""Costs are drawn over so many powers of ten below the largest."""


@runtime_checkable
class Found(Protocol):
    """What is shown; see ``tersor.search.sensitivity.Sensitivity``."""

    @property
    def task(self) -> str: ...
    @property
    def recipe(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def layers(self) -> Sequence[LayerCost]: ...
    @property
    def whole(self) -> float: ...
    @property
    def kept(self) -> Sequence[LayerCost]: ...
    @property
    def without(self) -> float | None: ...
    @property
    def stages(self) -> Sequence[Stage]: ...
    @property
    def metric(self) -> str | None: ...


def table(found: Found) -> RenderableType:
    """The layers, worst first; the kinds, one after the other; and what to keep in float."""
    layers = Grid(
        Column(_("layer")), Column(_("kind"), drop=3), Column(_("computes in"), drop=2),
        Column("MACs", right=True, drop=4), Column("SQNR", right=True, drop=1),
        Column(_("estimated"), right=True), Column(_("measured"), right=True),
    )  # fmt: skip
    for layer in worst_first(found.layers):
        layers.add(
            layer.name, shown(KINDS[layer.kind]), layer.format, _share(layer.macs, found.layers), db_text(layer.sqnr),
            _cost(layer.estimate), _cost(layer.divergence), style="yellow" if layer in found.kept else "",
        )  # fmt: skip
    kinds = Grid(
        Column(_("quantized, one kind after the other")), Column(_("operators"), right=True, drop=1),
        Column(_("divergence"), right=True), *([Column(shown(found.metric), right=True)] if found.metric else []),
    )  # fmt: skip
    for stage in found.stages:
        values = [] if not found.metric else ["" if stage.metric is None else f"{stage.metric:.4g}"]
        kinds.add(shown(KINDS[stage.kind]), str(stage.layers), _cost(stage.divergence), *values)
    return Group(layers, Text("\n" + legend(found) + "\n"), kinds, Text("\n" + advice(found)))


def page(found: Found) -> str:
    """The self-contained page as text."""
    top = max((layer.cost for layer in found.layers), default=0.0)
    layers = [
        {
            "name": layer.name, "op": layer.op, "kind": shown(KINDS[layer.kind]), "format": layer.format,
            "macs": _share(layer.macs, found.layers), "sqnr": db_text(layer.sqnr), "estimate": _cost(layer.estimate),
            "measured": _cost(layer.divergence), "kept": layer in found.kept,
            "drawing": _drawn(layer.cost, top, layer.name, layer in found.kept),
        }
        for layer in worst_first(found.layers)
    ]  # fmt: skip
    peak = max((stage.divergence for stage in found.stages), default=0.0)
    stages = [
        {
            "kind": shown(KINDS[stage.kind]), "layers": stage.layers, "divergence": _cost(stage.divergence),
            "metric": "" if stage.metric is None else f"{stage.metric:.4g}",
            "drawing": svg.bar(stage.divergence, peak or 1.0, shown(KINDS[stage.kind])),
        }
        for stage in found.stages
    ]  # fmt: skip
    return rendered(
        "sensitivity.html.j2", task=found.task, recipe=found.recipe, samples=found.samples, layers=layers,
        stages=stages, metric=found.metric, whole=_cost(found.whole), advice=advice(found), legend=legend(found),
        decades=DECADES,
    )  # fmt: skip


def advice(found: Found) -> str:
    """Which layers to keep in float, and what that was measured to save."""
    if not found.kept or found.without is None:
        return _("No layer costs much more than the others: none is worth keeping in float.")
    share = 1 - found.without / found.whole if found.whole else 0.0
    macs = sum(layer.macs for layer in found.kept) / max(1, sum(layer.macs for layer in found.layers))
    names = ", ".join(layer.name for layer in found.kept)
    if share <= 0.05:
        return _(
            "{names} cost most, but keeping them in float was measured to save nothing: {before} becomes {after}.",
            names=names, before=_cost(found.whole), after=_cost(found.without),
        )  # fmt: skip
    return _(
        "Worth keeping in float: {names}. The divergence then falls from {before} to {after} (measured), for {macs} of "
        "the multiply-accumulates. Rules of the step quantize that do so: {rules}.",
        names=names, before=_cost(found.whole), after=_cost(found.without), macs=_percent(macs),
        rules=", ".join(f"{{layer: {layer.name}, keep: fp32}}" for layer in found.kept),
    )  # fmt: skip


def legend(found: Found) -> str:
    """What the columns mean."""
    return _(
        "each operator quantized alone, the others in float; estimated, measured: divergence of the outputs from those "
        "in float, a sample; all of them: {whole} ({samples} samples)",
        whole=_cost(found.whole), samples=found.samples,
    )  # fmt: skip


def worst_first(layers: Sequence[LayerCost]) -> list[LayerCost]:
    """Measured ones and estimated ones in one order."""
    return sorted(layers, key=lambda layer: -layer.cost)


def _drawn(cost: float, top: float, name: str, kept: bool) -> Any:
    """A bar over powers of ten."""
    length = 0.0 if not cost or not top else max(0.0, DECADES + math.log10(cost / top))
    return svg.bar(length, DECADES, f"{name}: {_cost(cost)}", kind="fell" if kept else "")


def _cost(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if not value or value >= 1e-4 else f"{value:.1e}"


def _share(macs: int, layers: Sequence[LayerCost]) -> str:
    return "" if not macs else _percent(macs / max(1, sum(layer.macs for layer in layers)))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
