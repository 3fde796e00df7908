"""The one-step check in words: whether the engine's numbers match the simulation, and where they do not."""

from tersor.inert import plain
from tersor.measure.formatting import number_text
from tersor.measure.schema import CheckedValue, OneStep, Report

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
    return None if report.one_step is None else sentence(report.one_step)


def sentence(check: OneStep) -> str:
    """The sentence for a check.

    >>> value = CheckedValue(name="a", ops=("conv2d",), verdict="planned", largest=1, beyond=0)
    >>> sentence(OneStep(tolerance=1.0, steps=(value,)))
    "one-step check: 1 of 1 values within 1 code of the simulation, from the engine's own inputs"
    """
    steps = check.steps
    planned = sum(s.verdict == "planned" for s in steps)
    missing = sum(s.verdict == "unchecked" for s in steps)
    text = (
        f"one-step check: {planned} of {len(steps)} values within {codes(check.tolerance)} of the simulation, from the "
        "engine's own inputs"
    )
    worst = max((s for s in steps if s.verdict in ("float", "other")), key=lambda s: s.largest, default=None)
    if worst is not None:
        text += f"; {plain(worst.name)} differs by up to {codes(worst.largest)}"
    return f"{text}; {missing} unchecked" if missing else text


def codes(count: float) -> str:
    """A number of codes.

    >>> codes(1.0), codes(2.5), codes(0.0)
    ('1 code', '2.5 codes', '0 codes')
    """
    text = number_text(round(count, 1))
    return f"{text} code" if text == "1" else f"{text} codes"


def finding_of(step: CheckedValue) -> str:
    """The finding for a step, in a few words."""
    if step.verdict == "unchecked":
        return step.note or "unchecked"
    if step.verdict == "planned":
        return "as planned"
    share = f"{100 * step.beyond:.2g} % of its values"
    how = "executed in float" if step.verdict == "float" else "other numbers"
    return f"{how}: {share}, up to {codes(step.largest)}" + (f"; {step.note}" if step.note else "")
