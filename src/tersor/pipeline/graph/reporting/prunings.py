"""What pruning did, put into the report."""

from collections.abc import Sequence

from tersor.measure import Report
from tersor.measure.parts.pruning import Left, Pruning, Width, Zeros
from tersor.pipeline.graph.pruning import groups as layers
from tersor.pipeline.graph.pruning.record import Pruned


def with_prunings(report: Report, prunings: Sequence[Pruned]) -> Report:
    """The report with a record and the warnings of every pruning."""
    if not prunings:
        return report
    warnings = (*(note for pruned in prunings for note in pruned.notes), *report.warnings)
    return report.model_copy(update={"prunings": tuple(map(recorded, prunings)), "warnings": warnings})


def recorded(pruned: Pruned) -> Pruning:
    """A pruning as the report keeps it."""
    return Pruning(
        target=pruned.target,
        macs_before=pruned.macs[0],
        macs_after=pruned.macs[1],
        parameters_before=pruned.parameters[0],
        parameters_after=pruned.parameters[1],
        widths=_widths(pruned.widths),
        fixed=tuple(Left(layer=layer, why=why) for layer, why in pruned.fixed.items()),
        whole=tuple(Left(layer=layer, why=why) for layer, why in pruned.whole.items()),
        branches=pruned.branches,
        ranks=_widths(pruned.ranks),
        faster=pruned.faster,
        zeros=tuple(Zeros(layer=z.layer, weights=z.weights, zeros=z.zeros) for z in pruned.zeros),
    )


def _widths(widths: Sequence[layers.Width]) -> tuple[Width, ...]:
    return tuple(Width(layers=w.layers, before=w.before, after=w.after) for w in widths)
