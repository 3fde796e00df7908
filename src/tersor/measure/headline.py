"""The diagnosis of a report: whether compression worked, and if not, why and what to try."""

from collections.abc import Sequence
from dataclasses import dataclass

from tersor.engines.targets import exact_int8, saturates
from tersor.inert import plain
from tersor.measure.formatting import change_text, interval_text, is_fraction, metric_text, size_text, time_text
from tersor.measure.onestep import MANY, codes, deviating
from tersor.measure.parts.training import REMEDY, complaint, further, summary
from tersor.measure.schema import Audit, Layer, Report
from tersor.measure.size import why_not_smaller
from tersor.measure.speed import simulated, speed
from tersor.words import _, said, shown, speaking

WIDTH = {"int4": 4, "int8": 8, "fp8": 8, "int16": 16, "fp16": 16, "bf16": 16, "fp32": 32}
TOLERATED = 0.01  # of the metric, if there is no interval
TINY = 0.1  # ms of a call, below which a larger batch is worth a try
# The note of a layer that ran in another precision than planned, if the engine gives no rule.
UNEXPLAINED = said("no reason known")
_ON_TARGET = said("measuring on the target, or a plan for this CPU (without --target)")
# Operators of engines that only convert between number formats, and in OpenVINO also between layouts.
CONVERSIONS = frozenset(("Convert", "Reorder", "FakeQuantize", "Cast", "QuantizeLinear", "DequantizeLinear"))


@dataclass(frozen=True)
class Problem:
    """A problem, its cause, which is empty if none has been measured, and a remedy."""

    what: str
    why: str
    remedy: str

    def __str__(self) -> str:
        if not self.why:
            return _("{what}; try: {remedy}", what=self.what, remedy=self.remedy)
        return _("{what}, because {why}; try: {remedy}", what=self.what, why=self.why, remedy=self.remedy)


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
        first = _("Below target: {problem}", problem=self.problems[0])
        return " | ".join([first, *map(str, self.problems[1:]), self.gain])


def diagnose(report: Report) -> Diagnosis:
    """Check a report: slower than FP32, float fallbacks, below plan, not smaller, worse beyond chance, trained in
    vain.

    Speed and executed precision of a simulation mean nothing, so they are not mentioned there.
    """
    executed = (_fell_back(report), _below_plan(report), _other_numbers(report))
    trained = (Problem(summary(x), "", _(REMEDY)) for x in report.trainings if complaint(x))
    problems = (_slower(report), *executed, _not_shrunk(report), _worse(report), *trained)
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
        parts.append(found.text if found.faster or found.slower else _("speed: {text}", text=found.text))
    if before is not None and after is not None:
        fraction = is_fraction(report.metric.name, before, after)
        parts.append(
            f"{plain(report.metric.name)} {metric_text(before, fraction)} -> {metric_text(after, fraction)}"
        )
    else:
        parts.append(_("{metric} not measured", metric=plain(report.metric.name)))
    return _(", ").join(parts)


def _slower(report: Report) -> Problem | None:
    found = speed(report)
    if found is None or not found.slower:
        return None
    fact, remedy = _about_speed(report)
    what = _("{text} than FP32 in the same engine ({interval} over the rounds)", text=found.text,
             interval=found.interval)  # fmt: skip
    return Problem(_(", ").join(filter(None, (what, fact))), "", remedy)


def _about_speed(report: Report) -> tuple[str, str]:
    """Facts in the report that correlate with slowness, without proving a cause, and what to try."""
    latency, operators = report.original.latency_ms, len(report.audit)
    converting = sum(row.op in CONVERSIONS for row in report.audit)
    if wide := fallbacks(report):
        fact = _("with {count} of {all} layers in float", count=len(wide), all=len(report.layers))
        return fact, _("the remedies for the layers in float")
    if report.environment.isa and not exact_int8(report.environment.isa):
        fact = _("on a CPU that has no 8-bit integer products (no VNNI)")
        return fact, _("a newer CPU; on this one only the size improves")
    if latency is not None and latency.median < TINY:
        return _("with calls of {time}", time=time_text(latency.median)), _("a larger batch")
    if converting:
        fact = _(
            "with {count} of {all} operators that only convert between number formats or layouts",
            count=converting, all=operators,
        )  # fmt: skip
        return fact, _("another engine, or larger layers only")
    return "", _("another engine (`--engine auto` times those that are installed)")


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
    names = _names(
        [
            _("{name}: {executed} where {planned} is planned", name=x.name, executed=x.executed, planned=x.planned)
            for x in narrow
        ]
    )
    return _deviating(
        report,
        narrow,
        _(
            "{count} of {all} layers ran in fewer bits than planned ({names})",
            count=len(narrow), all=len(report.layers), names=names,
        ),
        _("another engine for this network; please report the layer and this CPU"),
    )


def _other_numbers(report: Report) -> Problem | None:
    steps = [s for s in deviating(report) if s.beyond >= MANY]
    if simulated(report) or not steps or report.one_step is None:
        return None
    worst = steps[0]
    what = _(
        "{count} of {all} values are computed in other numbers than planned ({name}: {share} % of them, by up to "
        "{codes})",
        count=len(steps), all=len(report.one_step.steps), name=plain(worst.name), share=f"{100 * worst.beyond:.2g}",
        codes=shown(codes(worst.largest)),
    )  # fmt: skip
    target, isa = report.environment.target, report.environment.isa
    if target is not None and saturates(target, isa):
        why = _("planned for {target}, {engine} saturates on this CPU, which has no VNNI", target=plain(target),
                engine=plain(report.engine))  # fmt: skip
        return Problem(what, why, _(_ON_TARGET))
    remedy = _("another engine, or a rule that keeps these operators in float; please report the operator and this CPU")
    return Problem(what, shown(plain(worst.note or "")), remedy)


def _deviating(report: Report, layers: Sequence[Layer], what: str, remedy: str) -> Problem:
    """The problem of layers that did not run as planned, with the rules of the engine that their notes give."""
    rules = dict.fromkeys(plain(x.note) for x in layers if x.note and UNEXPLAINED not in x.note)
    if not rules:
        return Problem(_(", ").join((what, _(UNEXPLAINED))), "", remedy)
    return Problem(what, _("; ").join(map(shown, list(rules)[:2])), remedy)


def _not_shrunk(report: Report) -> Problem | None:
    if report.ratios.compression is None or report.ratios.compression > 1:
        return None
    before, after = report.original.bytes, report.compressed.bytes
    what = _("the file did not shrink ({before} -> {after})", before=size_text(before), after=size_text(after))
    return Problem(what, *why_not_smaller(report))


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
    words = {"metric": plain(report.metric.name), "amount": amount}
    if interval is None:
        if drop <= TOLERATED * abs(before):
            return None
        what = _("{metric} is worse by {amount}", **words)
    elif interval[0] <= 0:
        return None
    else:
        span = interval_text(*interval, fraction)
        what = _("{metric} is worse by {amount}, beyond chance (95 %: {span})", span=span, **words)
    return Problem(what, *_why_worse(report, drop))


def _why_worse(report: Report, drop: float) -> tuple[str, str]:
    simulated, before = report.compressed.metric_simulated, report.original.metric
    if simulated is not None and before is not None and abs(simulated - before) < drop / 2:
        target, isa = report.environment.target, report.environment.isa
        names = {"engine": plain(report.engine), "target": plain(target or "")}
        if target is not None and saturates(target, isa):
            why = _(
                "the simulation keeps it and {engine} does not: planned for {target}, it saturates on this CPU, which "
                "has no VNNI",
                **names,
            )
            return why, _(_ON_TARGET)
        return _("the simulation keeps it and {engine} does not", **names), _("another engine")
    if report.calibration is not None and not report.calibration.adequate:
        notes = shown(plain("; ".join(report.calibration.notes[:1])))
        why = notes or _("ranges still changed in its second half")
        return _("the calibration data is inadequate ({notes})", notes=why), _(
            "more, and more varied, calibration samples"
        )
    known = sorted(
        (layer for layer in report.layers if layer.sqnr_db is not None), key=lambda x: x.sqnr_db or 0.0
    )
    if not known:
        return "", _("`tersor calibrate --compare`, or a rule that keeps layers in fp16")
    worst = _(", ").join(f"{plain(layer.name)} {layer.sqnr_db:.1f} dB" for layer in known[:3])
    return _("these layers have the largest errors: {layers}", layers=worst), _(
        "`tersor outliers` to analyse their inputs, a recipe rule that keeps them in fp16, per-channel weights, or "
        "{training}",
        training=further(any(layer.planned == "int4" for layer in report.layers), bool(report.trainings)),
    )


def _names(names: Sequence[str], most: int = 3) -> str:
    listed = ", ".join(plain(name) for name in names[:most])
    if len(names) <= most:
        return listed
    return _("{names} and {count} more", names=listed, count=len(names) - most)
