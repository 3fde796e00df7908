"""The figures of a report before and after, as rows of a chart: label, value, drawing."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tersor.measure.formatting import (
    change_text,
    interval_text,
    is_fraction,
    metric_text,
    named_steps,
    size_text,
    time_text,
)
from tersor.measure.schema import Latency, Report
from tersor.measure.speed import Speed, simulated, speed
from tersor.report import svg
from tersor.words import _

ROOM = 1.25  # the end of an axis of latencies, over the largest median; whiskers are cut there


@dataclass(frozen=True)
class Row:
    """One row of a chart: label, formatted value, drawing."""

    label: str
    value: str
    drawing: Markup


def tiles(report: Report) -> list[tuple[str, str, str]]:
    """Name, value and remark of the four main figures."""
    after, ratios = report.compressed, report.ratios
    fraction = is_fraction(report.metric.name, report.original.metric, after.metric)
    before = report.original.metric
    remark = "" if before is None else _("from {value}", value=metric_text(before, fraction))
    if after.metric_interval is not None:
        drop = interval_text(*after.metric_interval, fraction)
        remark = _("{remark}; drop {interval} (95 %)", remark=remark, interval=drop)
    found = speed(report)
    unmeasured = _("in the simulation") if simulated(report) else _("unknown")
    agreement = _("unknown") if after.agreement is None else f"{after.agreement:.1%}".replace("%", " %")
    return [
        (_("On disk"), size_text(after.bytes), change_text(ratios.compression, "smaller", "larger")),
        (_("Latency"), time_text(after.latency_ms.median if after.latency_ms else None),
         unmeasured if found is None else _with_interval(found)),
        (report.metric.name, metric_text(after.metric, fraction), remark),
        (_("Agreement"), agreement, _("of predictions equal FP32’s")),
    ]  # fmt: skip


def _with_interval(found: Speed) -> str:
    return found.text if found.interval in found.text else f"{found.text} ({found.interval})"


def charts(report: Report) -> list[tuple[str, list[Row]]]:
    """Every chart with its title; one without figures is left out."""
    before, after, name = report.original, report.compressed, report.recipe
    eager = [(_("FP32, eager"), report.original_eager.latency_ms)]
    found = [
        (_("On disk"), _bars([("FP32", before.bytes), (name, after.bytes)])),
        (_("Latency of one call"), latencies([("FP32", before.latency_ms), (name, after.latency_ms)])),
        (_("Latency in PyTorch, on an axis of its own"), latencies(eager)),
        (_("Memory of the loaded model"), _bars([("FP32", before.memory_bytes), (name, after.memory_bytes)])),
    ]
    if before.energy_joules is not None and after.energy_joules is not None:
        top = max(before.energy_joules, after.energy_joules)
        pairs = (("FP32", before.energy_joules, "base"), (name, after.energy_joules, ""))
        rows = [Row(who, f"{value:.3g} J", svg.bar(value, top, who, kind=kind)) for who, value, kind in pairs]
        found.append((_("Energy of one call"), rows))
    return [(title, rows) for title, rows in found if rows]


def _bars(pairs: Sequence[tuple[str, int | None]]) -> list[Row]:
    known = [(name, value) for name, value in pairs if value is not None]
    top = max((value for _, value in known), default=0)
    return [
        Row(name, size_text(value), svg.bar(value, top, f"{name}: {size_text(value)}", kind=_kind(name)))
        for name, value in known
    ]


def latencies(pairs: Sequence[tuple[str, Latency | None]]) -> list[Row]:
    """Medians with whiskers from p10 to p90, on an axis for the medians: one busy moment does not shrink the bars."""
    known = [(name, latency) for name, latency in pairs if latency is not None]
    top = ROOM * max((latency.median for _, latency in known), default=0.0)
    rows = []
    for name, latency in known:
        words = _("{name}: median {median}, p10 {low}, p90 {high}", name=name, median=time_text(latency.median),
                  low=time_text(latency.p10), high=time_text(latency.p90))  # fmt: skip
        drawing = svg.bar(latency.median, top, words, kind=_kind(name), spread=(latency.p10, latency.p90))
        rows.append(Row(name, time_text(latency.median), drawing))
    return rows


def timings(report: Report) -> list[Row]:
    """The seconds of every step."""
    steps = named_steps(report.timings_s.model_dump())
    top = max((value for _, value in steps), default=0.0)
    return [
        Row(name, f"{value:.1f} s", svg.bar(value, top, f"{name}: {value:.1f} s", kind="base"))
        for name, value in steps
    ]


def _kind(name: str) -> str:
    return "base" if name.startswith("FP32") else ""
