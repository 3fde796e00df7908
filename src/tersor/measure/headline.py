"""The diagnosis of a report: whether compression worked, and if not, why and what to try."""

from collections.abc import Sequence
from dataclasses import dataclass

from tersor.engines.targets import exact_int8, saturates
from tersor.inert import plain
from tersor.measure.formatting import change_text, interval_text, is_fraction, metric_text, size_text, time_text
from tersor.measure.onestep import MANY, codes, deviating
from tersor.measure.schema import Audit, Layer, Report
from tersor.measure.speed import simulated, speed
from tersor.words import _, speaking

WIDTH = {"int4": 4, "int8": 8, "fp8": 8, "int16": 16, "fp16": 16, "bf16": 16, "fp32": 32}
TOLERATED = 0.01  # of the metric, if there is no interval
TINY = 0.1  # ms of a call, below which a larger batch is worth a try
# The note of a layer that ran in another precision than planned, if the engine gives no rule.
UNEXPLAINED = "no reason known"
# Operators of engines that only convert between number formats, and in OpenVINO also between layouts.
CONVERSIONS = frozenset(("Convert", "Reorder", "FakeQuantize", "Cast", "QuantizeLinear", "DequantizeLinear"))


@dataclass(frozen=True)
class Problem:
    """A problem, its cause, which is empty if none has been measured, and a remedy."""

    what: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}{self.why and f', because {self.why}'}; try: {self.remedy}"


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
        return " | ".join(["NOT AS HOPED: " + str(self.problems[0]), *map(str, self.problems[1:]), self.gain])


def diagnose(report: Report) -> Diagnosis:
    """Check a report: slower than FP32, float fallbacks, below plan, not smaller, worse beyond chance.

    Speed and executed precision of a simulation mean nothing, so they are not mentioned there.
    """
    executed = (_fell_back(report), _below_plan(report), _other_numbers(report))
    problems = (_slower(report), *executed, _not_shrunk(report), _worse(report))
    return Diagnosis(_gain(report), tuple(problem for problem in problems if problem is not None))


def with_headline(report: Report) -> Report:
    """The report with its headline filled in, in English like all stored text."""
    with speaking("en"):
        return report.model_copy(update={"headline": diagnose(report).first_line})


def fallbacks(report: Report) -> tuple[Layer, ...]:
    """The layers that ran at a higher precision than planned."""
    return tuple(layer for layer in report.layers if fell_back(report, layer))


def fell_back(report: Report, row: Layer | Audit) -> bool:
    """Whether a layer or operator fell back to a higher precision; simulations compute all in float by design."""
    return not simulated(report) and is_fallback(row.planned, row.executed)


def below_plan(report: Report) -> tuple[Layer, ...]:
    """The layers with weights that ran at a lower precision than planned.

    Operators without weights are excluded: inside an integer kernel they still compute in float.
    """
    if simulated(report):
        return ()
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
    if (found := speed(report)) is not None:
        parts.append(found.text if found.faster or found.slower else f"speed: {found.text}")
    if before is not None and after is not None:
        fraction = is_fraction(report.metric.name, before, after)
        parts.append(
            f"{plain(report.metric.name)} {metric_text(before, fraction)} -> {metric_text(after, fraction)}"
        )
    else:
        parts.append(f"{plain(report.metric.name)} not measured")
    return ", ".join(parts)


def _slower(report: Report) -> Problem | None:
    found = speed(report)
    if found is None or not found.slower:
        return None
    fact, remedy = _about_speed(report)
    what = f"{found.text} than FP32 in the same engine ({found.interval} over the rounds)"
    return Problem(f"{what}, {fact}" if fact else what, "", remedy)


def _about_speed(report: Report) -> tuple[str, str]:
    """Facts in the report that correlate with slowness, without proving a cause, and what to try."""
    latency, operators = report.original.latency_ms, len(report.audit)
    converting = sum(row.op in CONVERSIONS for row in report.audit)
    if wide := fallbacks(report):
        return f"with {len(wide)} of {len(report.layers)} layers in float", "the remedies for the layers in float"
    if report.environment.isa and not exact_int8(report.environment.isa):
        fact = "on a CPU that has no 8-bit integer products (no VNNI)"
        return fact, "a newer CPU; on this one only the size improves"
    if latency is not None and latency.median < TINY:
        return f"with calls of {time_text(latency.median)}", "a larger batch"
    if converting:
        fact = f"with {converting} of {operators} operators that only convert between number formats or layouts"
        return fact, "another engine, or larger layers only"
    return "", "another engine (`--engine auto` times those that are installed)"


def _fell_back(report: Report) -> Problem | None:
    wide = fallbacks(report)
    if not wide:
        return None
    names = _names([layer.name for layer in wide])
    return _deviating(
        report,
        wide,
        _(
            "{count} of {all} layers fell back to float ({names})",
            count=len(wide), all=len(report.layers), names=names,
        ),
        _("another granularity or engine for these layers, or a rule that keeps them in float"),
    )


def _below_plan(report: Report) -> Problem | None:
    narrow = below_plan(report)
    if not narrow:
        return None
    names = _names([f"{layer.name}: {layer.executed} where {layer.planned} is planned" for layer in narrow])
    return _deviating(
        report,
        narrow,
        f"{len(narrow)} of {len(report.layers)} layers ran in fewer bits than planned ({names})",
        "another engine for this network; please report the layer and this CPU",
    )


def _other_numbers(report: Report) -> Problem | None:
    steps = [s for s in deviating(report) if s.beyond >= MANY]
    if simulated(report) or not steps or report.one_step is None:
        return None
    worst = steps[0]
    what = (
        f"{len(steps)} of {len(report.one_step.steps)} values are computed in other numbers than planned "
        f"({plain(worst.name)}: {100 * worst.beyond:.2g} % of them, by up to {codes(worst.largest)})"
    )
    target, isa = report.environment.target, report.environment.isa
    if target is not None and saturates(target, isa):
        why = f"planned for {plain(target)}, {plain(report.engine)} saturates on this CPU, which has no VNNI"
        return Problem(what, why, "judging it on the target, or a plan for this CPU (without --target)")
    remedy = "another engine, or a rule that keeps these operators in float; please report the operator and this CPU"
    return Problem(what, plain(worst.note or ""), remedy)


def _deviating(report: Report, layers: Sequence[Layer], what: str, remedy: str) -> Problem:
    """The problem of layers that did not run as planned, with the rules of the engine that their notes give."""
    rules = dict.fromkeys(plain(x.note) for x in layers if x.note and UNEXPLAINED not in x.note)
    if not rules:
        return Problem(f"{what}, {UNEXPLAINED}", "", remedy)
    return Problem(what, "; ".join(list(rules)[:2]), remedy)


def _not_shrunk(report: Report) -> Problem | None:
    if report.ratios.compression is None or report.ratios.compression > 1:
        return None
    before, after = report.original.bytes, report.compressed.bytes
    weights = sum(layer.weight_bytes or 0 for layer in report.layers)
    what = f"the file did not shrink ({size_text(before)} -> {size_text(after)})"
    if after is not None and weights < after / 2:
        why = f"only {size_text(weights)} of it are weights, the rest is the graph"
        return Problem(what, why, "nothing: a network this small does not benefit in size")
    narrow = any(WIDTH["fp32"] != WIDTH.get(layer.weight_format or "fp32") for layer in report.layers)
    why = "" if narrow else "no weight is stored in fewer bits"
    return Problem(what, why, "`tersor inspect` to see which layers are int8")


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
        return "", "`tersor calibrate --compare`, or a rule that keeps layers in fp16"
    worst = ", ".join(f"{plain(layer.name)} {layer.sqnr_db:.1f} dB" for layer in known[:3])
    return f"these layers have the largest errors: {worst}", (
        "`tersor outliers` to analyse their inputs, a recipe rule that keeps them in fp16, or per-channel weights"
    )


def _names(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(plain(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
