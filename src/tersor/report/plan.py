"""The plan as a table."""

from collections import Counter

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tersor.measure.formatting import size_text
from tersor.network.sites import Plan


def plan_table(plan: Plan, before: int = 0, after: int = 0, notes: tuple[str, ...] = ()) -> RenderableType:
    """A table of every operator with its planned precision and the reason, and the predicted size if it is known."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("layer", "op", "planned", "weight", "why"):
        table.add_column(column, overflow="fold")
    for layer in plan.layers:
        style = "" if layer.planned != "fp32" else "yellow"
        table.add_row(
            layer.name, layer.op, layer.planned, layer.weight_format or "", layer.reason, style=style
        )
    counts = ", ".join(
        f"{n} {precision}" for precision, n in Counter(x.planned for x in plan.layers).most_common()
    )
    ratio = before / after if after else 1.0
    words = Text(f"\n{len(plan.layers)} operators: {counts}; {len(plan.activations())} quantizers on edges")
    predicted = Text(
        f"weights {size_text(before)} → about {size_text(after)}, {ratio:.1f}x smaller (predicted)"
    )
    return Group(table, words, *([predicted] if before else []), *(Text(f"note: {n}", style="yellow") for n in notes))
