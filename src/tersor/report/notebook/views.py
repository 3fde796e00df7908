"""What there is to see of each value that a user holds: a table with one entry a class."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tersor.inert import one_line, plain
from tersor.measure.formatting import size_text
from tersor.measure.headline import diagnose
from tersor.measure.schema import Report
from tersor.report import compare, language, outliers, sensitivity
from tersor.report.tables import calibration
from tersor.report.tables.grid import Column, Grid
from tersor.report.tables.plan import plan_table, weights_grid
from tersor.report.text import render
from tersor.words import _, shown, speaking


@dataclass(frozen=True)
class View:
    """How the values of a class show themselves.

    Args:
        line: what ``repr`` says of a value after the name of its class, in English.
        table: what a terminal and a notebook show of it.
    """

    line: Callable[[Any], str]
    table: Callable[[Any], RenderableType]


def line(value: object) -> str:
    """The ``repr`` of a value: one line of plain text."""
    with speaking("en"):
        return one_line(f"<{type(value).__name__} {_view(value).line(value)}>")


def renderable(value: object) -> RenderableType:
    """What `rich` prints of a value."""
    return _view(value).table(value)


def _view(value: object) -> View:
    return next(VIEWS[kind.__name__] for kind in type(value).__mro__ if kind.__name__ in VIEWS)


def _line_of_report(report: Report) -> str:
    size = size_text(report.compressed.bytes)
    return f"{report.task} · {report.recipe} · {report.engine}: {size}, {diagnose(report).gain}"


def _line_of_language(report: Any) -> str:
    return f"{report.model} · {report.recipe} · {report.layout}: {report.headline()}"


def _line_of_compressed(done: Any) -> str:
    if done.report is not None:
        return _view(done.report).line(done.report)
    return f"{_name_of(done)}: not measured"


def _name_of(done: Any) -> str:
    # Of a folder the engine is not asked for: the model would be loaded to tell.
    where = done.engine if done.folder is None else done.folder.name
    return f"{done.recipe.name} · {where}"


def _compressed(done: Any) -> RenderableType:
    if done.report is not None:
        return renderable(done.report)
    words = Text(plain(_("{name}: not measured", name=_name_of(done))))
    return words if done.plan is None else Group(words, renderable(done.plan))


def _counts(names: Sequence[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())


def _line_of_plan(plan: Any) -> str:
    return f"of {len(plan.layers)} operators: {_counts([layer.planned for layer in plan.layers])}"


def _line_of_weights(plans: Sequence[Any]) -> str:
    return f"of {len(plans)} weights: {_counts(['compressed' if p.touched else 'left' for p in plans])}"


def _line_of_modules(plans: Sequence[Any]) -> str:
    return f"of {len(plans)} modules: {_counts(['float' if p.weights is None else 'quantized' for p in plans])}"


def _modules(plans: Sequence[Any]) -> RenderableType:
    grid = Grid(Column(_("module")), Column(_("op"), drop=1), Column(_("becomes"), drop=2, sentences=True))
    for p in plans:
        grid.add(p.name, p.weighted.op, shown(p.reason), style="yellow" if p.weights is None else "")
    return grid


def _line_of_outliers(found: Any) -> str:
    advice = _counts([layer.advice for layer in found.layers])
    return f"in {found.task}, {len(found.layers)} layers over {found.samples} samples: {advice}"


def _line_of_sensitivity(found: Any) -> str:
    return f"of {found.task} by {found.recipe}: {len(found.layers)} operators over {found.samples} samples"


def _calibrated(found: Any) -> RenderableType:
    return Group(calibration.ranges(found), calibration.verdict(found))


def _line_of_calibration(found: Any) -> str:
    quality = found.verdict
    adequate = "adequate" if not quality.warnings else "; ".join(quality.warnings)
    return f"{len(found.estimates)} sites over {quality.samples} samples: {adequate}"


# By class name, since the classes of `pipeline` are above this package.
VIEWS = {
    "Report": View(_line_of_report, render),
    "LanguageReport": View(_line_of_language, language.render),
    "Compressed": View(_line_of_compressed, _compressed),
    "Plan": View(_line_of_plan, plan_table),
    "WeightPlans": View(_line_of_weights, weights_grid),
    "ModulePlans": View(_line_of_modules, _modules),
    "Comparison": View(lambda found: f"of {len(found.runs)} runs: {', '.join(found.runs)}", compare.table),
    "Outliers": View(_line_of_outliers, lambda found: outliers.table(found.layers)),
    "Sensitivity": View(_line_of_sensitivity, sensitivity.table),
    "Calibrated": View(_line_of_calibration, _calibrated),
}
