"""A search in a report: the verdict, all candidates in a table, and speed against what was lost as a picture."""

from collections.abc import Sequence

from tersor.inert import plain
from tersor.measure.formatting import metric_text, size_text, time_text
from tersor.measure.parts.contract import Contract, Tried
from tersor.report.figures import Figure
from tersor.report.scatter import TradeOff, drawing
from tersor.report.tables.grid import Column, Grid
from tersor.words import _, plural, said, shown


def goal(contract: Contract) -> str:
    """What was asked, with a capital."""
    words = _("; ").join(shown(part) for part in contract.goal)
    return words[:1].upper() + words[1:]


def verdict(contract: Contract) -> str:
    """Whether it was kept, with all figures."""
    return " ".join(shown(part) for part in contract.verdict)


def trail(contract: Contract) -> str:
    """How the search went."""
    return plural(
        "{count} candidate, {evaluations} evaluations, {seconds} of {budget}",
        "{count} candidates, {evaluations} evaluations, {seconds} of {budget}",
        len(contract.tried),
        evaluations=contract.evaluations,
        seconds=time_text(1000 * contract.seconds),
        budget=time_text(1000 * contract.budget),
    )


def heads() -> list[str]:
    """The titles of the columns of ``cells``."""
    return [_("Candidate"), _("Speed-up"), _("over the first"), _("Size"), _("Lost"), _("Time")]


def cells(one: Tried, fraction: bool) -> list[str]:
    """A candidate's row; what could not be made has its reason in place of figures."""
    name, seconds = plain(shown(one.name)), time_text(1000 * one.seconds)
    if one.error:
        return [f"{name}: {plain(one.error)}", "–", "–", "–", "–", seconds]
    lost = metric_text(one.drop, fraction, signed=True)
    speeds = (f"{value:.2f}x" for value in (one.speedup or 0.0, one.over_first or 0.0))  # whose differences matter
    return [name, *speeds, size_text(one.bytes), lost, seconds]


def grid(contract: Contract, fraction: bool) -> Grid:
    """The table for a terminal: the chosen candidate in green."""
    first, speed, over, size, lost, time = heads()
    found = Grid(
        Column(first), Column(speed, right=True), Column(over, right=True, drop=2), Column(size, right=True, drop=3),
        Column(lost, right=True), Column(time, right=True, drop=1),
    )  # fmt: skip
    for one in contract.tried:
        found.add(*cells(one, fraction), style="green" if one.chosen else "dim" if one.error else "")
    return found


def picture(contract: Contract, fraction: bool) -> dict[str, object] | None:
    """What was lost against the latency as a share of the original's; None of a single candidate."""
    made = [(k, one) for k, one in enumerate(contract.tried) if not one.error and one.speedup and one.drop is not None]
    if len(made) < 2:
        return None
    scale, unit = (100, said("points")) if fraction else (1, "")
    x = [Figure(said("latency"), 1 / (one.speedup or 1), "%", interval=_inverse(one.spread)) for _k, one in made]
    y = [Figure(said("lost"), scale * (one.drop or 0.0), unit, higher_is_better=False) for _k, one in made]
    numbers = tuple(k + 1 for k, _one in made)
    found = TradeOff(said("latency"), _names([one for _k, one in made]), numbers, tuple(x), tuple(y))
    return drawing(found, [""] * len(contract.tried))


def _inverse(spread: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if spread is None else (1 / spread[1], 1 / spread[0])


def _names(made: Sequence[Tried]) -> tuple[str, ...]:
    return tuple(plain(shown(one.name)) for one in made)
