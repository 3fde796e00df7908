"""The diagnosis of a report: whether compression worked, and if not, why and what to try."""

from collections.abc import Sequence
from dataclasses import dataclass

from tersor.engines import ENGINES, automatic
from tersor.engines.targets import exact_int8, saturates
from tersor.measure.formatting import (
    change_text,
    interval_text,
    is_fraction,
    metric_text,
    plain,
    size_text,
    time_text,
)
from tersor.measure.schema import Layer, Report

WIDTH = {"int4": 4, "int8": 8, "fp8": 8, "int16": 16, "fp16": 16, "bf16": 16, "fp32": 32}
TOLERATED = 0.01  # of the metric, if there is no interval
TINY = 0.1  # ms; below it, call overhead dominates


@dataclass(frozen=True)
class Problem:
    """A problem, its cause and a remedy."""

    what: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}, because {self.why}; try: {self.remedy}"


@dataclass(frozen=True)
class Diagnosis:
    """`gain` is the result in figures; `problems` is empty if compression worked."""

    gain: str
    problems: tuple[Problem, ...]

    @property
    def worked(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def first_line(self) -> str:
        """The first line of every form of the report."""
        if self.worked:
            return self.gain
        return " | ".join(["BELOW TARGET: " + str(self.problems[0]), *map(str, self.problems[1:]), self.gain])


def diagnose(report: Report) -> Diagnosis:
    """Check a report: slower than FP32, float fallbacks, below plan, not smaller, worse beyond chance."""
    problems = (_slower(report), _fell_back(report), _below_plan(report), _not_shrunk(report), _worse(report))
    return Diagnosis(_gain(report), tuple(problem for problem in problems if problem is not None))


def with_headline(report: Report) -> Report:
    """The report with its headline filled in."""
    return report.model_copy(update={"headline": diagnose(report).first_line})


def fallbacks(report: Report) -> tuple[Layer, ...]:
    """The layers that ran at a higher precision than planned."""
    return tuple(layer for layer in report.layers if is_fallback(layer.planned, layer.executed))


def below_plan(report: Report) -> tuple[Layer, ...]:
    """The layers with weights that ran at a lower precision than planned.

    Operators without weights are excluded: inside an integer kernel they still compute in float.
    """
    return tuple(
        layer
        for layer in report.layers
        if layer.weight_format is not None and is_fallback(layer.executed, layer.planned)
    )


def is_fallback(planned: str | None, executed: str | None) -> bool:
    """Whether a layer ran at a higher precision than planned; `fused`, part of another operator, does not count.

    >>> is_fallback("int8", "fp32"), is_fallback("int8", "fused"), is_fallback("fp16", "fp16")
    (True, False, False)
    """
    return WIDTH.get(executed or "", 0) > WIDTH.get(planned or "", 99)


def _gain(report: Report) -> str:
    before, after = report.original.metric, report.compressed.metric
    parts = []
    if report.ratios.compression is not None:
        parts.append(change_text(report.ratios.compression, "smaller", "larger"))
    if report.ratios.speedup is not None:
        parts.append(change_text(report.ratios.speedup, "faster", "slower"))
    if before is not None and after is not None:
        fraction = is_fraction(report.metric.name, before, after)
        parts.append(
            f"{plain(report.metric.name)} {metric_text(before, fraction)} -> {metric_text(after, fraction)}"
        )
    else:
        parts.append(f"{plain(report.metric.name)} not measured")
    return ", ".join(parts)


def _slower(report: Report) -> Problem | None:
    speedup, latency = report.ratios.speedup, report.original.latency_ms
    if speedup is None or speedup >= 1:
        return None
    what = f"{change_text(speedup, 'faster', 'slower')} than FP32 in the same engine"
    # A report may name an engine of another version.
    engine = ENGINES.get(report.engine)
    if engine is not None and engine.simulates:
        others = " or ".join(automatic())
        return Problem(what, f"the {engine.name} engine only simulates integers", f"--engine {others}")
    if wide := fallbacks(report):
        return Problem(
            what, f"{len(wide)} layers fell back to float", "the remedies for these layers that run in float"
        )
    if report.environment.isa and not exact_int8(report.environment.isa):
        return Problem(
            what, "this CPU has no 8-bit integer products (no VNNI)", "a newer CPU; on this one only the size improves"
        )
    if latency is not None and latency.median < TINY:
        return Problem(
            what, f"one call takes {time_text(latency.median)}: call overhead dominates", "a larger batch"
        )
    return Problem(
        what,
        "conversions between float and int8 cost more than int8 saves",
        "another engine, or larger layers only",
    )


def _fell_back(report: Report) -> Problem | None:
    wide = fallbacks(report)
    if not wide:
        return None
    reasons = list(dict.fromkeys(plain(layer.note) for layer in wide if layer.note))
    names = _names([layer.name for layer in wide])
    return Problem(
        f"{len(wide)} of {len(report.layers)} layers fell back to float ({names})",
        "; ".join(reasons[:2]) or f"{plain(report.engine)} has no kernel for them as planned",
        "another granularity or engine for these layers, or a rule that keeps them in float",
    )


def _below_plan(report: Report) -> Problem | None:
    narrow = below_plan(report)
    if not narrow:
        return None
    names = _names([f"{layer.name}: {layer.executed} where {layer.planned} is planned" for layer in narrow])
    return Problem(
        f"{len(narrow)} of {len(report.layers)} layers ran in fewer bits than planned ({names})",
        f"{plain(report.engine)} optimized their quantizers away",
        "another engine for this network; please report the layer and this CPU",
    )


def _not_shrunk(report: Report) -> Problem | None:
    if report.ratios.compression is None or report.ratios.compression > 1:
        return None
    before, after = report.original.bytes, report.compressed.bytes
    weights = sum(layer.weight_bytes or 0 for layer in report.layers)
    what = f"the file did not shrink ({size_text(before)} -> {size_text(after)})"
    if after is not None and weights < after / 2:
        why = f"only {size_text(weights)} of it are weights, the rest is the graph"
        return Problem(what, why, "nothing: a network this small does not benefit in size")
    return Problem(
        what, "the weights are stored at the same width", "`tersor inspect` to see which layers are int8"
    )


def _worse(report: Report) -> Problem | None:
    drop, interval, before = (
        report.ratios.metric_drop,
        report.compressed.metric_interval,
        report.original.metric,
    )
    if drop is None or drop <= 0 or before is None:
        return None
    fraction = is_fraction(report.metric.name, before, report.compressed.metric)
    amount = metric_text(drop, fraction, signed=True).lstrip("+")
    if interval is None:
        if drop <= TOLERATED * abs(before):
            return None
        what = f"{plain(report.metric.name)} is worse by {amount}"
    elif interval[0] <= 0:
        return None
    else:
        span = interval_text(*interval, fraction)
        what = f"{plain(report.metric.name)} is worse by {amount}, beyond chance (95 %: {span})"
    return Problem(what, *_why_worse(report, drop))


def _why_worse(report: Report, drop: float) -> tuple[str, str]:
    simulated, before = report.compressed.metric_simulated, report.original.metric
    if simulated is not None and before is not None and abs(simulated - before) < drop / 2:
        why = f"the simulation keeps it and {plain(report.engine)} does not"
        target, isa = report.environment.target, report.environment.isa
        if target is not None and saturates(target, isa):
            why += f": planned for {plain(target)}, it saturates on this CPU, which has no VNNI"
            return why, "judging it on the target, or a plan for this CPU (without --target)"
        return why, "another engine"
    if report.calibration is not None and not report.calibration.adequate:
        notes = plain("; ".join(report.calibration.notes[:1])) or "ranges still changed in its second half"
        return f"the calibration data is inadequate ({notes})", "more, and more varied, calibration samples"
    known = sorted(
        (layer for layer in report.layers if layer.sqnr_db is not None), key=lambda x: x.sqnr_db or 0.0
    )
    if not known:
        return (
            "quantization added too much noise",
            "`tersor calibrate --compare`, or a rule that keeps layers in fp16",
        )
    worst = ", ".join(f"{plain(layer.name)} {layer.sqnr_db:.1f} dB" for layer in known[:3])
    return f"these layers have the largest errors: {worst}", (
        "`tersor outliers` to analyse their inputs, a recipe rule that keeps them in fp16, or per-channel weights"
    )


def _names(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(plain(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
