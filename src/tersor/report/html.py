"""The report as one self-contained HTML page, without external resources and with all foreign text escaped."""

from collections import Counter
from collections.abc import Iterable

from tersor.measure.formatting import is_fraction, metric_text, precision_text, size_text, time_text
from tersor.measure.gates import sentences
from tersor.measure.headline import diagnose, fallbacks, fell_back
from tersor.measure.onestep import deviating, finding_of, summary, unchecked
from tersor.measure.schema import Report
from tersor.measure.speed import simulated
from tersor.report import contract, layers, pruning, training
from tersor.report.advice import next_step
from tersor.report.charts import charts, tiles, timings
from tersor.report.shell import rendered
from tersor.words import _, plural, shown

UNKNOWN = ": unknown, because "  # of a warning about figures that are null
SITES = 12  # histograms shown at once; the others are collapsed


def html(report: Report) -> str:
    """The page as text."""
    return rendered("template.html.j2", **_view(report))


def _view(report: Report) -> dict[str, object]:
    fell = fallbacks(report)
    diagnosis = diagnose(report)
    ran = Counter(precision_text(layer.executed) for layer in report.layers)
    audit = [(row, fell_back(report, row), time_text(row.milliseconds)) for row in report.audit]
    check = summary(report)
    return {
        "report": report,
        "diagnosis": diagnosis,
        "warnings": [shown(words) for words in grouped(report.warnings)],
        "todo": next_step(report, diagnosis),
        "tiles": tiles(report),
        "charts": charts(report),
        "profile": layers.profile(report.layers, fell),
        "network": layers.network(report),
        "rows": layers.rows(report),
        "fell": fell,
        "ran": ran.most_common(),
        "audit": audit,
        "timed": any(row.milliseconds is not None for row in report.audit),
        "histograms": [(site.site, layers.values(site)) for site in report.histograms],
        "shown_at_once": SITES,
        "facts": _facts(report),
        "timings": timings(report),
        "prunings": [(x, pruning.sentence(x), pruning.rows(x)) for x in report.prunings],
        "gates": sentences(report),
        "contract": None if report.contract is None else _contract(report),
        "trainings": [(x, training.sentence(x), training.curves(x), training.rows(x)) for x in report.trainings],
        "simulated": simulated(report),
        "one_step": None if check is None else shown(check),
        "steps": [(step, shown(finding_of(step))) for step in (*deviating(report), *unchecked(report))],
        "precision_text": precision_text,
        "size_text": size_text,
        "time_text": time_text,
    }


def _contract(report: Report) -> dict[str, object]:
    """The search that the network comes from."""
    found, fraction = report.contract, is_fraction(report.metric.name, report.original.metric)
    assert found is not None
    return {
        "found": found,
        "goal": contract.goal(found),
        "verdict": contract.verdict(found),
        "trail": contract.trail(found),
        "heads": contract.heads(),
        "rows": [(one, contract.cells(one, fraction)) for one in found.tried],
        "picture": contract.picture(found, fraction),
    }


def grouped(warnings: Iterable[str]) -> list[str]:
    """Warnings about figures that are unknown for the same reason, as one.

    >>> grouped(["a.b: unknown, because c", "d", "a.e: unknown, because c"])
    ['a.b, a.e: unknown, because c', 'd']
    """
    paths: dict[str, list[str]] = {}
    for words in warnings:
        path, because, reason = words.partition(UNKNOWN)
        paths.setdefault(because + reason if because else words, []).extend([path] if because else [])
    return [f"{', '.join(names)}{reason}" if names else reason for reason, names in paths.items()]


def _facts(report: Report) -> list[tuple[str, str]]:
    environment, after = report.environment, report.compressed
    fraction = is_fraction(report.metric.name, after.metric)
    return [
        (_("Processor"), environment.cpu or _("unknown")),
        (_("Instructions"), ", ".join(environment.isa) or _("unknown")),
        (_("Planned for"), environment.target or _("the machine that planned")),
        (_("System"), environment.system or _("unknown")),
        (_("Threads"), str(environment.threads)),
        (_("Float precision"), environment.precision),
        (_("Versions"), ", ".join(f"{name} {number}" for name, number in environment.versions.items())),
        (_("Calibrated on"), _samples(report.samples.calibration)),
        (_("Evaluated on"), _samples(report.samples.evaluation)),
        (_("Metric in the simulation"), metric_text(after.metric_simulated, fraction)),
        (_("Seed"), str(report.seed)),
        (_("Peak memory while compressing"), size_text(report.peak_memory_bytes)),
    ]


def _samples(count: int | None) -> str:
    return _("unknown") if count is None else plural("{count:,} sample", "{count:,} samples", count)
