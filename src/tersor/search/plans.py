"""What to try next: formats first, layer by layer, then ever narrower networks, by what the trials so far came to."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from glob import escape
from math import sqrt
from typing import Any

from tersor.recipe import Prune, Quantize, Recipe, Rule
from tersor.search.judge import Judge
from tersor.search.trial import Candidate, Trial
from tersor.words import said

FIRST, STEP, NEAREST, MOST = 1.25, 1.2, 1.05, 7
"""The first speed that narrower networks are to gain, how much more each time, where halving ends, and how many."""
AGAIN = 1.02
"""A speed or size that was missed is tried again with so much more than what was missing."""

SAMPLES = 1024
"""By which narrower networks are repaired, if the task has so many."""

Plans = Generator[Candidate, Trial, None]
Kept = Sequence[str]
Structure = tuple[str, ...]
BRANCHES, ALL = ("branches",), ("channels", "branches")
"""What may go. Branches alone often lose less: what many narrower layers lose together is underestimated."""


@dataclass(frozen=True)
class Menu:
    """What a search chooses from.

    Args:
        first: the recipe that it starts with.
        floats: the names of layers that stay in float, for ever more latency; measured when it is first called.
        narrower: whether layers may become narrower.
    """

    first: Recipe
    floats: Callable[[], Sequence[Kept]]
    narrower: bool = True

    def in_float(self, kept: Kept) -> Recipe:
        """The first recipe, with these layers in float."""
        rules = tuple(Rule(layer=escape(name), keep="fp32") for name in kept)
        return self._with([s.model_copy(update={"rules": (*s.rules, *rules)}) if isinstance(s, Quantize) else s
                           for s in self.first.steps])  # fmt: skip

    def pruned(self, target: str, kept: Kept, structure: Structure) -> Recipe:
        """The recipe behind a pruning; what stays in float stays whole."""
        step: dict[str, Any] = {"target": target, "structure": structure, "samples": SAMPLES}
        step["keep"] = tuple(map(escape, kept))
        return self._with([Prune.model_validate(step), *self.in_float(kept).steps])

    def _with(self, steps: list[Any]) -> Recipe:
        return self.first.model_copy(update={"steps": tuple(steps)})


def plans(menu: Menu, judge: Judge) -> Plans:
    """Candidates, one after another; each trial decides which comes next."""
    first = yield Candidate(menu.first.name or "first", menu.first)
    if judge.goal.fastest:
        yield from _fastest(menu, judge, first)
    else:
        yield from _truest(menu, judge, first)


def _fastest(menu: Menu, judge: Judge, first: Trial) -> Plans:
    """As fast as possible within what may be lost."""
    kept: Kept = ()
    whole = first
    if not judge.loses_little(first):
        for kept in menu.floats():
            whole = yield _floats(menu, kept)
            if judge.loses_little(whole):
                break
        else:
            return
    if menu.narrower:
        yield from _narrower(menu, judge, kept, whole)


def _narrower(menu: Menu, judge: Judge, kept: Kept, whole: Trial) -> Plans:
    """Ever faster networks until too much is lost; then between the last two. What is asked may be exceeded by far,
    where whole branches go, and what was reached counts."""
    good, bad, times, structure = 1.0, None, FIRST, BRANCHES
    seen = list[tuple[Any, ...]]()
    for number in range(MOST):
        trial = yield _pruned(menu, f"{_factor(times)}x latency", kept, structure)
        if number == 0:
            other = yield _pruned(menu, f"{_factor(times)}x latency", kept, ALL)
            if trial.failed or (not other.failed and judge.drop(other)[0] < judge.drop(trial)[0]):
                structure, trial = ALL, other
        if judge.loses_little(trial):
            good = max(times, trial.facts.over_first / whole.facts.over_first)
        elif trial.recipe.steps in seen:  # nothing less can go
            return
        else:
            bad = times
            seen.append(trial.recipe.steps)
        if bad is not None and bad / good <= NEAREST:
            return
        times = good * STEP if bad is None else sqrt(good * bad)


def _truest(menu: Menu, judge: Judge, first: Trial) -> Plans:
    """As little loss as possible for a speed or size."""
    if judge.fits(first):
        for kept in menu.floats():
            trial = yield _floats(menu, kept)
            if not judge.fits(trial):
                return
        return
    if not menu.narrower or first.failed:
        return
    goal, last = judge.goal, first
    what, target = "latency", 1.0
    for _number in range(MOST):
        missing = 1.0 if goal.min_speedup is None else goal.min_speedup / last.facts.speedup
        larger = 1.0 if goal.max_bytes is None else last.facts.bytes / goal.max_bytes
        if last is first:
            what = "latency" if missing >= larger else "bytes"
        target *= max(1.0, missing, larger) * AGAIN
        last = yield _pruned(menu, f"{_factor(target)}x {what}", (), ALL)
        if last.failed or judge.fits(last):
            return


def _factor(times: float) -> str:
    """A factor as recipes write it.

    >>> _factor(1.25), _factor(1.118034), _factor(8620.0)
    ('1.25', '1.118', '8620')
    """
    return f"{times:.3f}".rstrip("0").rstrip(".")


def _floats(menu: Menu, kept: Kept) -> Candidate:
    name = said("one layer in float") if len(kept) == 1 else said("{count} layers in float", count=len(kept))
    return Candidate(name, menu.in_float(kept), "floats")


def _pruned(menu: Menu, target: str, kept: Kept, structure: Structure) -> Candidate:
    if structure == BRANCHES:
        name = said("{target} by branches", target=target)
    else:
        name = said("pruned by {target}", target=target)
    found = Candidate(name, menu.pruned(target, kept, structure), "pruned")
    return found if not kept else replace(found, name=f"{name}, {_floats(menu, kept).name}")
