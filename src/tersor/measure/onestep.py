"""The one-step check in words: whether the engine's numbers match the simulation, and where they do not."""

from tersor.inert import plain
from tersor.measure.formatting import number_text
from tersor.measure.schema import CheckedValue, OneStep, Report
from tersor.words import _, said, shown

# The share of an operator's values that differ, above which the headline says so.
MANY = 0.01


def deviating(report: Report) -> tuple[CheckedValue, ...]:
    """The steps whose numbers are not as planned, those with the most differing values first."""
    steps = report.one_step.steps if report.one_step is not None else ()
    return tuple(sorted((s for s in steps if s.verdict in ("float", "other")), key=lambda s: (-s.beyond, -s.largest)))


def unchecked(report: Report) -> tuple[CheckedValue, ...]:
    """The steps that could not be checked."""
    return tuple(s for s in report.one_step.steps if s.verdict == "unchecked") if report.one_step is not None else ()


def summary(report: Report) -> str | None:
    """One sentence, or None if nothing was checked."""
    return None if report.one_step is None else shown(sentence(report.one_step))


def sentence(check: OneStep) -> str:
    """The sentence for a check, in English.

    >>> value = CheckedValue(name="a", ops=("conv2d",), verdict="planned", largest=1, beyond=0)
    >>> sentence(OneStep(tolerance=1.0, steps=(value,)))
    "one-step check: 1 of 1 values within 1 code of the simulation, from the engine's own inputs"
    """
    steps = check.steps
    planned = sum(s.verdict == "planned" for s in steps)
    missing = sum(s.verdict == "unchecked" for s in steps)
    parts = [
        said(
            "one-step check: {count} of {all} values within {tolerance} of the simulation, from the engine's own "
            "inputs",
            count=planned, all=len(steps), tolerance=codes(check.tolerance),
        )
    ]  # fmt: skip
    worst = max((s for s in steps if s.verdict in ("float", "other")), key=lambda s: s.largest, default=None)
    if worst is not None:
        parts.append(said("{name} differs by up to {codes}", name=plain(worst.name), codes=codes(worst.largest)))
    if missing:
        parts.append(said("{count} not checked", count=missing))
    return "; ".join(parts)


def codes(count: float) -> str:
    """A number of codes, in English.

    >>> codes(1.0), codes(2.5), codes(0.0)
    ('1 code', '2.5 codes', '0 codes')
    """
    text = number_text(round(count, 1))
    return said("{count} code", count=text) if text == "1" else said("{count} codes", count=text)


def finding_of(step: CheckedValue) -> str:
    """The finding for a step, in a few words."""
    if step.verdict == "unchecked":
        return shown(step.note or "") or _("not checked")
    if step.verdict == "planned":
        return _("as planned")
    found = {"share": f"{100 * step.beyond:.2g} %", "codes": shown(codes(step.largest))}
    if step.verdict == "float":
        text = _("executed in float: {share} of its values differ, by up to {codes}", **found)
    else:
        text = _("other numbers: {share} of its values differ, by up to {codes}", **found)
    return _("; ").join((text, shown(step.note))) if step.note else text
