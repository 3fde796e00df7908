"""The report in a terminal: headline, figures, the layers with the largest error, and every warning."""

import io

import rich.console
from rich.console import Group, RenderableType
from rich.text import Text

from tersor.inert import plain
from tersor.measure.formatting import (
    EXACT,
    change_text,
    db_text,
    interval_text,
    is_fraction,
    metric_text,
    named_steps,
    precision_text,
    size_text,
    time_text,
)
from tersor.measure.gates import sentences
from tersor.measure.headline import Diagnosis, diagnose, fallbacks
from tersor.measure.nulls import explains_null
from tersor.measure.onestep import deviating, finding_of, summary
from tersor.measure.parts.training import complaint
from tersor.measure.schema import Latency, Layer, Report
from tersor.measure.speed import Speed, simulated, speed, speed_over_eager
from tersor.report import contract, pruning, training
from tersor.report.tables.grid import Column, Grid
from tersor.terminal import Inert, Terminal
from tersor.words import _, shown


def render(report: Report, *, top: int = 10) -> Group:
    """The report for a rich console, with the `top` worst layers and a summary of the others."""
    return Group(_headline(diagnose(report)), *_body(report, top))


def text(report: Report, *, width: int = 100, top: int = 10) -> str:
    """The report as plain text without colours.

    The first line is `report.headline`, whatever the width.
    """
    console = Terminal(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    for part in _body(report, top):
        console.print(part, crop=False)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join([plain(diagnose(report).first_line), *(line.rstrip() for line in lines)]) + "\n"


def print_report(report: Report, console: rich.console.Console | None = None, *, top: int = 10) -> None:
    """Print the report."""
    # Names that are longer than a line run on.
    (console or Terminal()).print(Inert(render(report, top=top)), crop=False)


def _styled(words: str, style: str = "") -> Text:
    # Text, never markup: names come from untrusted files.
    return Text(plain(words), style=style)


def _headline(diagnosis: Diagnosis) -> Text:
    return _styled(diagnosis.first_line, "bold green" if diagnosis.worked else "bold yellow")


def _body(report: Report, top: int) -> list[RenderableType]:
    return [
        _styled(f"{report.task} · {report.recipe} · {report.engine}", "dim"),
        "",
        _figures(report),
        _ratios(report),
        *_contract(report),
        *_prunings(report),
        *_trainings(report),
        "",
        *_layers(report, top),
        *_one_step(report),
        "",
        _environment(report),
        *_warnings(report),
    ]


def _figures(report: Report) -> Grid:
    before, after, ratios = report.original, report.compressed, report.ratios
    fraction = is_fraction(report.metric.name, before.metric, after.metric)
    drop = None if ratios.metric_drop is None else metric_text(-_metric_decrease(report), fraction, signed=True)
    names = ("FP32", plain(report.recipe), "")
    grid = Grid(Column(""), *(Column(name, right=True) for name in names), ruled=True)
    rows = [
        (_("on disk"), size_text(before.bytes), size_text(after.bytes),
         change_text(ratios.compression, "smaller", "larger")),
        (_("latency"), time_text(_median(before.latency_ms)), time_text(_median(after.latency_ms)),
         _speed_text(speed(report), report)),
        (f"  {_('p10 to p90')}", _spread(before.latency_ms), _spread(after.latency_ms), ""),
        (f"  {_('eager PyTorch')}", time_text(_median(report.original_eager.latency_ms)), "",
         _speed_text(speed_over_eager(report), report)),
        (_("memory"), size_text(before.memory_bytes), size_text(after.memory_bytes), ""),
        (report.metric.name, metric_text(before.metric, fraction), metric_text(after.metric, fraction),
         drop or _("unknown")),
    ]  # fmt: skip
    if before.energy_joules is not None and after.energy_joules is not None:
        rows.append((_("energy per call"), f"{before.energy_joules:.3g} J", f"{after.energy_joules:.3g} J", ""))
    for row in rows:
        grid.add(*row)
    return grid


def _speed_text(found: Speed | None, report: Report) -> str:
    return found.text if found is not None else _("simulated") if simulated(report) else _("unknown")


def _metric_decrease(report: Report) -> float:
    """How much the metric's value decreased."""
    drop = report.ratios.metric_drop or 0.0
    return drop if report.metric.higher_is_better else -drop


def _ratios(report: Report) -> Text:
    after, fraction = report.compressed, is_fraction(report.metric.name, report.compressed.metric)
    parts = []
    if after.metric_interval is not None:
        span = interval_text(*after.metric_interval, fraction)
        parts.append(_("drop, paired 95 %: {interval}", interval=span))
    if after.agreement is not None:
        parts.append(_("{share} of predictions agree with FP32", share=f"{100 * after.agreement:.1f} %"))
    if after.metric_simulated is not None:
        parts.append(_("simulated: {metric}", metric=metric_text(after.metric_simulated, fraction)))
    if (found := speed(report)) is not None:
        parts.append(_("speed-up {interval} over the rounds", interval=found.interval))
    return _styled(_("; ").join(parts), "dim")


def _contract(report: Report) -> list[RenderableType]:
    found = report.contract
    if found is None:
        return []
    told = _styled(f"{contract.goal(found)}: {contract.verdict(found)}", "bold green" if found.kept else "bold yellow")
    fraction = is_fraction(report.metric.name, report.original.metric)
    return ["", told, contract.grid(found, fraction), _styled(contract.trail(found), "dim")]


def _prunings(report: Report) -> list[RenderableType]:
    found: list[RenderableType] = []
    for one in report.prunings:
        found += ["", pruning.sentence(one)]
        found += [table] if (table := pruning.grid(one)) is not None else []
    return [*found, *(part for line in sentences(report) for part in ("", _styled(line)))]


def _trainings(report: Report) -> list[RenderableType]:
    found: list[RenderableType] = []
    for one in report.trainings:
        found += ["", _styled(training.sentence(one), "yellow" if complaint(one) else "")]
        found += [training.grid(one)] if one.epochs else []
    return found


def _layers(report: Report, top: int) -> list[RenderableType]:
    if not report.layers:
        return [_styled(_("no layers"))]
    fallen = set(fallbacks(report))
    worst = sorted(report.layers, key=lambda layer: _worst_first(layer, layer in fallen))
    grid = Grid(
        Column(_("layer, worst first")),
        Column(_("op"), right=True, drop=2),
        Column(_("ran in"), right=True),
        Column("SQNR dB", right=True),
        Column(_("accumulated"), right=True, drop=1),
        ruled=True,
    )
    for layer in worst[:top]:
        fell = layer in fallen
        ran = precision_text(layer.executed)
        if fell:
            ran = _("{executed}, not {planned}", executed=layer.executed, planned=layer.planned)
        cells = (layer.name, layer.op, ran, db_text(layer.sqnr_db), db_text(layer.accumulated_sqnr_db))
        grid.add(*cells, style="bold yellow" if fell else "")
    rest = worst[top:]
    return [grid, _styled(_rest(rest), "dim")] if rest else [grid]


def _one_step(report: Report, most: int = 3) -> list[Text]:
    text = summary(report)
    if text is None:
        return []
    found = (_("{name}: {text}", name=step.name, text=finding_of(step)) for step in deviating(report)[:most])
    lines = [_styled(f"  {line}", "yellow") for line in found]
    return [_styled(text, "dim"), *lines]


def _worst_first(layer: Layer, fell: bool) -> tuple[bool, float]:
    # Fallbacks first, then by SQNR, unknown last.
    return not fell, float("inf") if layer.sqnr_db is None else layer.sqnr_db


def _rest(layers: list[Layer]) -> str:
    counts: dict[str, int] = {}
    for layer in layers:
        executed = precision_text(layer.executed)
        counts[executed] = counts.get(executed, 0) + 1
    ran = _(", ").join(f"{count} {name}" for name, count in counts.items())
    known = [layer.sqnr_db for layer in layers if layer.sqnr_db is not None and layer.sqnr_db < EXACT]
    text = _("and {count} more: {precisions}", count=len(layers), precisions=ran)
    return _("; ").join((text, _("SQNR from {db} dB up", db=db_text(min(known))))) if known else text


def _environment(report: Report) -> Text:
    environment, steps = report.environment, named_steps(report.timings_s.model_dump())
    versions = " ".join(f"{name} {number}" for name, number in environment.versions.items())
    took = _(", ").join(f"{name} {value:.1f} s" for name, value in steps)
    machine = [
        f"{environment.cpu or _('unknown CPU')} ({' '.join(environment.isa)})",
        _("{count} threads", count=environment.threads),
        environment.precision,
    ]
    if environment.target:
        machine.append(_("planned for {target}", target=environment.target))
    if environment.device != "cpu":
        machine.append(_("compressed on {device}", device=environment.device))
    samples = _(
        "calibrated on {calibration} samples, evaluated on {evaluation}",
        calibration=report.samples.calibration or 0, evaluation=report.samples.evaluation or 0,
    )  # fmt: skip
    lines = (
        _(", ").join(machine),
        _("; ").join((versions, _("seed {seed}", seed=report.seed), samples)),
        _("; ").join((took, _("peak memory {size}", size=size_text(report.peak_memory_bytes)))),
    )
    return Text("\n").join(_styled(line, "dim") for line in lines)


def _warnings(report: Report) -> list[Text]:
    marks = {True: Text(_("note: "), style="dim"), False: Text(_("warning: "), style="yellow")}
    return [marks[explains_null(words)] + _styled(shown(words)) for words in report.warnings]


def _median(latency: Latency | None) -> float | None:
    return None if latency is None else latency.median


def _spread(latency: Latency | None) -> str:
    if latency is None:
        return ""
    low, high = time_text(latency.p10), time_text(latency.p90)
    # Omit the first unit if both are the same.
    return _("{low} to {high}", low=low.removesuffix(high[high.index(" ") :]), high=high)
