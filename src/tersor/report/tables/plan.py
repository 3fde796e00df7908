"""What is planned for a network or a folder: as a table, and as plain values."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tersor.inert import plain
from tersor.measure.formatting import size_text
from tersor.network.sites import Plan
from tersor.recipe import Prune, Recipe, Step, Train
from tersor.report.tables.grid import Column, Grid
from tersor.tables import name_of
from tersor.words import _, plural, shown


def plan_table(
    plan: Plan, before: int = 0, after: int = 0, notes: tuple[str, ...] = (), recipe: Recipe | None = None
) -> RenderableType:
    """A table of every operator with its planned precision and the reason, and the predicted size if it is known;
    with the steps of a recipe that has several."""
    grid = Grid(
        Column(_("layer")),
        Column(_("op"), drop=1),
        Column(_("planned")),
        Column(_("weight"), drop=2),
        Column(_("why"), drop=3, sentences=True),
    )
    for layer in plan.layers:
        style = "" if layer.planned != "fp32" else "yellow"
        grid.add(layer.name, layer.op, layer.planned, layer.weight_format or "", shown(layer.reason), style=style)
    counts = _(", ").join(f"{n} {precision}" for precision, n in _counts(plan).items())
    operators = _(
        "{all} operators: {precisions}; {quantizers} quantizers on edges",
        all=len(plan.layers), precisions=counts, quantizers=len(plan.activations()),
    )  # fmt: skip
    predicted = _(
        "weights {before} → about {after}, {ratio} smaller (predicted)",
        before=size_text(before), after=size_text(after), ratio=f"{before / after if after else 1.0:.1f}x",
    )  # fmt: skip
    lines = (Text(_("note: {text}", text=plain(shown(n))), style="yellow") for n in notes)
    steps = [] if recipe is None or len(recipe.steps) < 2 else [Text(steps_text(recipe))]
    return Group(grid, Text(f"\n{operators}"), *([Text(predicted)] if before else []), *steps, *lines)


def steps_text(recipe: Recipe) -> str:
    """The steps of a recipe, in order.

    >>> from tersor.recipe import PRESETS
    >>> steps_text(PRESETS["int4-qat"]())
    'steps: quantize → train (3 epochs, adamw, rate 0.0003, distilled by auto)'
    """
    found = [_described(step) for step in recipe.steps]
    return _("steps: {steps}", steps=" → ".join(found))


def _described(step: Step) -> str:
    if isinstance(step, Prune):
        return f"{step.name} ({step.target}, {name_of(step.score)})"
    return _training(step) if isinstance(step, Train) else step.name


def _training(step: Train) -> str:
    losses = ", ".join(str(name_of(loss)) for loss in step.distill)
    taught = _("distilled by {losses}", losses=losses) if losses else _("by the task's loss")
    parts = (
        plural("{count} epoch", "{count} epochs", step.epochs),
        name_of(step.optimizer),
        _("rate {rate}", rate=f"{step.rate:g}"),
        taught,
    )
    return f"{step.name} ({_(', ').join(parts)})"


def plan_data(
    plan: Plan, before: int, after: int, notes: tuple[str, ...] = (), recipe: Recipe | None = None
) -> dict[str, Any]:
    """The same as plain values."""
    layers = [
        {"name": x.name, "op": x.op, "planned": x.planned, "weight_format": x.weight_format, "reason": x.reason}
        for x in plan.layers
    ]
    return {
        "kind": "task",
        "layers": layers,
        "planned": _counts(plan),
        "quantizers": len(plan.activations()),
        "original_bytes": before,
        "predicted_bytes": after,
        "notes": list(notes),
        "steps": [] if recipe is None else [step.name for step in recipe.steps],
    }


def weights_grid(plans: Sequence[Any]) -> Grid:
    """What each weight of a folder becomes, and why."""
    grid = Grid(Column(_("weight")), Column(_("shape"), drop=1), Column(_("becomes"), drop=2, sentences=True))
    for p in plans:
        grid.add(p.name, " × ".join(map(str, p.shape)), shown(p.reason), style="" if p.touched else "yellow")
    return grid


def folder_table(plans: Sequence[Any], preflight: Any) -> RenderableType:
    """A table of what is planned for every weight of a folder, and what the run needs."""
    counts = [_("{count} weights quantized", count=preflight.quantized)]
    if preflight.pruned:
        counts.append(_("{count} pruned", count=preflight.pruned))
    counts.append(_("{count} skipped", count=preflight.skipped))
    sizes = f"{size_text(preflight.original)} → {size_text(preflight.compressed)}"
    needs = _(
        "the run takes about {memory} of memory and {disk} of disk for activations",
        memory=size_text(preflight.memory), disk=size_text(preflight.disk),
    )  # fmt: skip
    total = Text("\n" + _("; ").join((_(", ").join(counts), sizes, needs)))
    return Group(weights_grid(plans), total, *(Text(plain(shown(w)), style="yellow") for w in preflight.warnings))


def folder_data(plans: Sequence[Any], preflight: Any) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "kind": "language",
        "weights": [
            {"name": t.name, "shape": list(t.shape), "quantized": t.touched, "reason": t.reason} for t in plans
        ],
        "original_bytes": preflight.original,
        "predicted_bytes": preflight.compressed,
        "memory_bytes": preflight.memory,
        "disk_bytes": preflight.disk,
        "notes": list(preflight.warnings),
    }


def _counts(plan: Plan) -> dict[str, int]:
    return dict(Counter(x.planned for x in plan.layers).most_common())
