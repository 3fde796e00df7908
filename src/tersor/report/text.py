"""The report in a terminal: headline, figures, the layers with the largest error, and every warning."""

import io

import rich.console
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tersor.inert import plain
from tersor.measure.formatting import (
    change_text,
    db_text,
    interval_text,
    is_fraction,
    metric_text,
    size_text,
    time_text,
)
from tersor.measure.headline import Diagnosis, diagnose, fallbacks
from tersor.measure.nulls import explains_null
from tersor.measure.onestep import deviating, finding_of, summary
from tersor.measure.schema import Latency, Layer, Report
from tersor.measure.speed import Speed, simulated, speed, speed_over_eager
from tersor.terminal import Inert, Terminal


def render(report: Report, *, top: int = 10) -> Group:
    """The report for a rich console, with the `top` worst layers and a summary of the others."""
    return Group(_headline(diagnose(report)), *_body(report, top))


def text(report: Report, *, width: int = 100, top: int = 10) -> str:
    """The report as plain text without colours.

    The first line is `report.headline`, whatever the width.
    """
    console = Terminal(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    for part in _body(report, top):
        console.print(part)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join([plain(diagnose(report).first_line), *(line.rstrip() for line in lines)]) + "\n"


def print_report(report: Report, console: rich.console.Console | None = None, *, top: int = 10) -> None:
    """Print the report."""
    (console or Terminal()).print(Inert(render(report, top=top)))


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
        "",
        *_layers(report, top),
        *_one_step(report),
        "",
        _environment(report),
        *_warnings(report),
    ]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, header_style="dim")
    for k, name in enumerate(columns):
        table.add_column(name, justify="left" if k == 0 else "right", overflow="fold")
    return table


def _figures(report: Report) -> Table:
    before, after, ratios = report.original, report.compressed, report.ratios
    fraction = is_fraction(report.metric.name, before.metric, after.metric)
    drop = None if ratios.metric_drop is None else metric_text(-_metric_decrease(report), fraction, signed=True)
    table = _table("", "FP32", plain(report.recipe), "")
    rows = [
        ("on disk", size_text(before.bytes), size_text(after.bytes),
         change_text(ratios.compression, "smaller", "larger")),
        ("latency", time_text(_median(before.latency_ms)), time_text(_median(after.latency_ms)),
         _said(speed(report), report)),
        ("  p10 to p90", _spread(before.latency_ms), _spread(after.latency_ms), ""),
        ("  eager PyTorch", time_text(_median(report.original_eager.latency_ms)), "",
         _said(speed_over_eager(report), report)),
        ("memory", size_text(before.memory_bytes), size_text(after.memory_bytes), ""),
        (plain(report.metric.name), metric_text(before.metric, fraction), metric_text(after.metric, fraction),
         drop or "unknown"),
    ]  # fmt: skip
    if before.energy_joules is not None and after.energy_joules is not None:
        rows.append(("energy per call", f"{before.energy_joules:.3g} J", f"{after.energy_joules:.3g} J", ""))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _said(found: Speed | None, report: Report) -> str:
    return found.text if found is not None else "simulated" if simulated(report) else "unknown"


def _metric_decrease(report: Report) -> float:
    """How much the metric's value decreased."""
    drop = report.ratios.metric_drop or 0.0
    return drop if report.metric.higher_is_better else -drop


def _ratios(report: Report) -> Text:
    after, fraction = report.compressed, is_fraction(report.metric.name, report.compressed.metric)
    parts = []
    if after.metric_interval is not None:
        parts.append(f"drop, paired 95 %: {interval_text(*after.metric_interval, fraction)}")
    if after.agreement is not None:
        parts.append(f"{after.agreement:.1%} of predictions agree with FP32")
    if after.metric_simulated is not None:
        parts.append(f"simulated {metric_text(after.metric_simulated, fraction)}")
    if (found := speed(report)) is not None:
        parts.append(f"speed-up {found.interval} over the rounds")
    return _styled("; ".join(parts), "dim")


def _layers(report: Report, top: int) -> list[RenderableType]:
    if not report.layers:
        return [_styled("no layers")]
    fallen = set(fallbacks(report))
    worst = sorted(report.layers, key=lambda layer: _worst_first(layer, layer in fallen))
    table = _table("layer, worst first", "op", "ran in", "SQNR dB", "accumulated")
    for layer in worst[:top]:
        fell = layer in fallen
        ran = f"{layer.executed}, not {layer.planned}" if fell else layer.executed or "unknown"
        cells = (layer.name, layer.op, ran, db_text(layer.sqnr_db), db_text(layer.accumulated_sqnr_db))
        table.add_row(*(_styled(cell, "bold yellow" if fell else "") for cell in cells))
    rest = worst[top:]
    return [table, _styled(_rest(rest), "dim")] if rest else [table]


def _one_step(report: Report, most: int = 3) -> list[Text]:
    text = summary(report)
    if text is None:
        return []
    lines = [_styled(f"  {step.name}: {finding_of(step)}", "yellow") for step in deviating(report)[:most]]
    return [_styled(text, "dim"), *lines]


def _worst_first(layer: Layer, fell: bool) -> tuple[bool, float]:
    # Fallbacks first, then by SQNR, unknown last.
    return not fell, float("inf") if layer.sqnr_db is None else layer.sqnr_db


def _rest(layers: list[Layer]) -> str:
    counts: dict[str, int] = {}
    for layer in layers:
        executed = layer.executed or "unknown"
        counts[executed] = counts.get(executed, 0) + 1
    ran = ", ".join(f"{count} {name}" for name, count in counts.items())
    known = [layer.sqnr_db for layer in layers if layer.sqnr_db is not None]
    span = f"; SQNR from {db_text(min(known))} dB up" if known else ""
    return f"and {len(layers)} more: {ran}{span}"


def _environment(report: Report) -> Text:
    environment, steps = report.environment, report.timings_s.model_dump()
    versions = " ".join(f"{name} {number}" for name, number in environment.versions.items())
    took = ", ".join(f"{name} {value:.1f} s" for name, value in steps.items() if value is not None)
    calibrated, evaluated = report.samples.calibration or "no", report.samples.evaluation or "no"
    samples = f"calibrated on {calibrated} samples, evaluated on {evaluated}"
    target = f", planned for {environment.target}" if environment.target else ""
    lines = (
        f"{environment.cpu or 'unknown CPU'} ({' '.join(environment.isa)}), {environment.threads} threads, "
        f"{environment.precision}{target}",
        f"{versions}; seed {report.seed}; {samples}",
        f"{took}; peak memory {size_text(report.peak_memory_bytes)}",
    )
    return Text("\n").join(_styled(line, "dim") for line in lines)


def _warnings(report: Report) -> list[Text]:
    marks = {True: Text("note: ", style="dim"), False: Text("warning: ", style="yellow")}
    return [marks[explains_null(words)] + _styled(words) for words in report.warnings]


def _median(latency: Latency | None) -> float | None:
    return None if latency is None else latency.median


def _spread(latency: Latency | None) -> str:
    if latency is None:
        return ""
    low, high = time_text(latency.p10), time_text(latency.p90)
    # Omit the first unit if both are the same.
    return f"{low.removesuffix(high[high.index(' ') :])} to {high}"
