"""The report as one self-contained HTML page, without external resources and with all foreign text escaped."""

import base64
import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tersor.inert import plain
from tersor.measure.formatting import (
    change_text,
    db_text,
    interval_text,
    is_fraction,
    metric_text,
    number_text,
    size_text,
    time_text,
)
from tersor.measure.headline import diagnose, fallbacks, fell_back
from tersor.measure.onestep import deviating, finding_of, summary, unchecked
from tersor.measure.schema import Histogram, Latency, Layer, Report
from tersor.measure.speed import Speed, simulated, speed
from tersor.report import svg
from tersor.words import _, language, shown

WORST = 24  # layers drawn as bars; the table lists all of them
SITES = 12  # histograms shown at once; the others are collapsed
EXACT = 150.0


@dataclass(frozen=True)
class Row:
    """One row of a chart: label, formatted value, drawing."""

    label: str
    value: str
    drawing: Markup


def html(report: Report) -> str:
    """The page as text."""
    return rendered("template.html.j2", **_view(report))


def rendered(template: str, **view: object) -> str:
    """Render a template of this package; all text in ``view`` is escaped and made plain.

    The page runs this package's script and style and nothing else, whatever stands in ``view``: it has no other
    sources, and both are named by their hashes.
    """
    package = files("tersor.report")
    style, script, text = (
        package.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js", template)
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_inert, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(_=_, shown=shown, language=language)
    policy = f"style-src {_digest(style)}; script-src {_digest(script)}; base-uri 'none'; form-action 'none'"
    head = _HEAD.replace("POLICY", f"default-src 'none'; {policy}").replace("STYLE", style)
    parts = {name: Markup(ours) for name, ours in (("head", head), ("foot", f"<script>{script}</script>"))}  # noqa: S704
    return environment.from_string(text).render(**parts, **view)


# Of every page: the policy first, so that nothing precedes it.
_HEAD = """<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="POLICY">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="tersor">
<style>STYLE</style>"""


def _digest(text: str) -> str:
    """A source of a content security policy: the text with this hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inert(value: object) -> object:
    return value if isinstance(value, Markup) else plain(str(value))


def _view(report: Report) -> dict[str, object]:
    fell = fallbacks(report)
    ran = Counter(layer.executed or "unknown" for layer in report.layers)
    return {
        "report": report,
        "diagnosis": diagnose(report),
        "tiles": _tiles(report),
        "charts": _charts(report),
        "profile": _profile(report.layers, fell),
        "worst": _worst(report.layers, fell),
        "fell": fell,
        "ran": ran.most_common(),
        "histograms": [_histogram(site) for site in report.histograms],
        "shown": SITES,
        "facts": _facts(report),
        "timings": _timings(report),
        "fell_back": partial(fell_back, report),
        "simulated": simulated(report),
        "one_step": summary(report),
        "steps": [*deviating(report), *unchecked(report)],
        "finding_of": finding_of,
        "size_text": size_text,
        "db_text": db_text,
    }


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """Name, value and remark of the four main figures."""
    after, ratios = report.compressed, report.ratios
    fraction = is_fraction(report.metric.name, report.original.metric, after.metric)
    remark = f"from {metric_text(report.original.metric, fraction)}"
    if after.metric_interval is not None:
        remark += f"; drop {interval_text(*after.metric_interval, fraction)} (95 %)"
    found = speed(report)
    unmeasured = "in the simulation" if simulated(report) else "unknown"
    agreement = "unknown" if after.agreement is None else f"{after.agreement:.1%}".replace("%", " %")
    return [
        ("On disk", size_text(after.bytes), change_text(ratios.compression, "smaller", "larger")),
        ("Latency", time_text(after.latency_ms.median if after.latency_ms else None),
         unmeasured if found is None else _with_interval(found)),
        (report.metric.name, metric_text(after.metric, fraction), remark),
        ("Agreement", agreement, "of predictions equal FP32's"),
    ]  # fmt: skip


def _with_interval(found: Speed) -> str:
    return found.text if found.interval in found.text else f"{found.text} ({found.interval})"


def _charts(report: Report) -> list[tuple[str, list[Row]]]:
    before, after, name = report.original, report.compressed, report.recipe
    charts = [
        ("On disk", _bars([("FP32", before.bytes), (name, after.bytes)])),
        ("Latency of one call", _latencies(report)),
        ("Memory of the loaded model", _bars([("FP32", before.memory_bytes), (name, after.memory_bytes)])),
    ]
    if before.energy_joules is not None and after.energy_joules is not None:
        top = max(before.energy_joules, after.energy_joules)
        pairs = (("FP32", before.energy_joules, "base"), (name, after.energy_joules, ""))
        rows = [Row(who, f"{value:.3g} J", svg.bar(value, top, who, kind=kind)) for who, value, kind in pairs]
        charts.append(("Energy of one call", rows))
    return [(title, rows) for title, rows in charts if rows]


def _bars(pairs: Sequence[tuple[str, int | None]]) -> list[Row]:
    known = [(name, value) for name, value in pairs if value is not None]
    top = max((value for _, value in known), default=0)
    return [
        Row(name, size_text(value), svg.bar(value, top, f"{name}: {size_text(value)}", kind=_kind(name)))
        for name, value in known
    ]


def _latencies(report: Report) -> list[Row]:
    pairs: list[tuple[str, Latency | None]] = [
        ("FP32, eager", report.original_eager.latency_ms),
        ("FP32", report.original.latency_ms),
        (report.recipe, report.compressed.latency_ms),
    ]
    known = [(name, latency) for name, latency in pairs if latency is not None]
    top = max((latency.p90 for _, latency in known), default=0.0)
    rows = []
    for name, latency in known:
        low, middle, high = time_text(latency.p10), time_text(latency.median), time_text(latency.p90)
        words = f"{name}: median {middle}, p10 {low}, p90 {high}"
        drawing = svg.bar(latency.median, top, words, kind=_kind(name), spread=(latency.p10, latency.p90))
        rows.append(Row(name, middle, drawing))
    return rows


def _kind(name: str) -> str:
    return "base" if name.startswith("FP32") else ""


def _top(layers: Sequence[Layer]) -> float:
    """The end of the dB axis: the multiple of 10 above all inexact values."""
    both = [value for layer in layers for value in (layer.sqnr_db, layer.accumulated_sqnr_db)]
    known = [value for value in both if value is not None and value < EXACT]
    return max(10.0, 10.0 * -(-max(known, default=10.0) // 10))


def _profile(layers: Sequence[Layer], fell: Collection[Layer]) -> tuple[Markup, int] | None:
    # Skip layers that add no noise (a ReLU fused into a convolution), where the line would jump to the top.
    noisy = [x for x in layers if x.sqnr_db != EXACT or x in fell]
    if not any(layer.sqnr_db is not None or layer.accumulated_sqnr_db is not None for layer in noisy):
        return None
    top = _top(noisy)
    marked = [at for at, layer in enumerate(noisy) if layer in fell]
    local = [None if layer.sqnr_db == EXACT else layer.sqnr_db for layer in noisy]
    accumulated = [layer.accumulated_sqnr_db for layer in noisy]
    words = f"SQNR over {len(noisy)} layers, local and accumulated, 0 to {top:.0f} dB"
    return svg.profile(local, accumulated, marked, top, words), int(top)


def _worst(layers: Sequence[Layer], fell: Collection[Layer]) -> list[Row]:
    known = [layer for layer in layers if layer.sqnr_db is not None]
    top, rows = _top(layers), []
    for layer in sorted(known, key=lambda layer: layer.sqnr_db or 0.0)[:WORST]:
        local, accumulated = db_text(layer.sqnr_db), db_text(layer.accumulated_sqnr_db)
        words = f"{layer.name}: local {local} dB, accumulated {accumulated} dB"
        kind = "fell" if layer in fell else ""
        drawing = svg.twin_bar(layer.sqnr_db, layer.accumulated_sqnr_db, top, words, kind=kind)
        rows.append(Row(layer.name, f"{local} / {accumulated}", drawing))
    return rows


def _histogram(site: Histogram) -> dict[str, object]:
    ends = [site.bins[0], site.bins[-1], *(bound for pair in site.thresholds.values() for bound in pair)]
    low, high = min(ends), max(ends)
    first, last = site.bins[0], site.bins[-1]
    words = f"histogram of {site.site}: {sum(site.counts)} values from {number_text(first)} to {number_text(last)}"
    rows = [
        Row(
            name,
            f"{number_text(first)} … {number_text(last)}",
            svg.bracket(
                first, last, low, high, f"{name}: {number_text(first)} to {number_text(last)}", kind=_rank(name, site)
            ),
        )
        for name, (first, last) in site.thresholds.items()
    ]
    drawing = svg.histogram(site.bins, site.counts, low, high, words)
    return {"site": site.site, "low": number_text(low), "high": number_text(high), "drawing": drawing, "rows": rows}


def _rank(name: str, site: Histogram) -> str:
    """Style ranges that were not chosen as secondary."""
    return "base" if "chosen" in site.thresholds and name != "chosen" else ""


def _facts(report: Report) -> list[tuple[str, str]]:
    environment, after = report.environment, report.compressed
    fraction = is_fraction(report.metric.name, after.metric)
    return [
        ("Processor", environment.cpu or "unknown"),
        ("Instructions", ", ".join(environment.isa) or "unknown"),
        ("Planned for", environment.target or "the machine that planned"),
        ("System", environment.system or "unknown"),
        ("Threads", str(environment.threads)),
        ("Float precision", environment.precision),
        ("Versions", ", ".join(f"{name} {number}" for name, number in environment.versions.items())),
        ("Calibrated on", _samples(report.samples.calibration)),
        ("Evaluated on", _samples(report.samples.evaluation)),
        ("Metric in the simulation", metric_text(after.metric_simulated, fraction)),
        ("Seed", str(report.seed)),
        ("Peak memory while compressing", size_text(report.peak_memory_bytes)),
    ]


def _samples(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,} samples".replace(",", " ")


def _timings(report: Report) -> list[Row]:
    steps = [(name, value) for name, value in report.timings_s.model_dump().items() if value is not None]
    top = max((value for _, value in steps), default=0.0)
    return [
        Row(name, f"{value:.1f} s", svg.bar(value, top, f"{name}: {value:.1f} s", kind="base"))
        for name, value in steps
    ]
