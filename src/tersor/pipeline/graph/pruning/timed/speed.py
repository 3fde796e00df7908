"""Targets in latency: choose by the measured stairs, measure what was chosen, correct the stairs, choose again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tersor.errors import RecipeError
from tersor.pipeline.graph.pruning.parts import Parts
from tersor.pipeline.graph.pruning.selection import Choice, Offer, bought, reaching, taken, uniform
from tersor.pipeline.graph.pruning.timed.stairs import Clock, Stairs
from tersor.pipeline.progress import Stage
from tersor.solvers.structured.allocation import Option, Pair, allocate
from tersor.words import _

TRIES, NEAR = 4, 0.03


@dataclass
class Speed:
    """What is saved in the engine.

    Args:
        clock: times networks.
        stairs: what was measured of kinds of groups and branches.

    Attributes:
        factor: how much of what the stairs promise a whole network was measured to save.
        reached: the share of the dense latency that was measured for the final choice.
    """

    clock: Clock
    stairs: Stairs
    factor: float = 1.0
    reached: float | None = None

    def of_group(self, group: int, now: int, counts: Sequence[int]) -> tuple[list[int], NDArray[np.float64]]:
        """Of the numbers that may go those that the engine rewards, and the milliseconds saved: [now + 1]."""
        steps = self.stairs.groups[group]
        found = [0, *(n for n in counts if n and now - n in steps)]
        saved = np.zeros(now + 1)
        for count in found[1:]:
            saved[count] = steps[now - count] - self.stairs.saved(group, now)
        return found, saved

    def spent(self, group: int, now: int) -> float:
        """What a group has saved already."""
        return self.stairs.saved(group, now)

    def of_branch(self, branch: int) -> float:
        """What a branch saves with all of its groups as they were at first."""
        return self.stairs.branches[branch]

    def chosen(
        self, parts: Parts, offers: list[Offer], gone: list[int], times: float, last: bool, bar: Stage, *, priced: bool
    ) -> Choice:
        """How many of each offer go so that the network is ``times`` as fast; the ``last`` part is measured.

        Raises:
            RecipeError: nothing reaches it, with how far it got.
        """
        before = self.clock([parts.small(gone)], rounds=31)[0].median if gone else 1.0
        tried = list[tuple[float, Choice]]()
        for _number in range(TRIES if last else 1):
            choice = self._choice(offers, before, times, priced)
            if not last:
                return choice
            bar.say(_("pruning: measuring what was chosen"))
            share = self.clock([parts.small([*gone, *taken(offers, choice)])], rounds=31)[0].median
            tried.append((share, choice))
            promised = _promised(offers, choice) / self.stairs.dense
            if 1 / times * (1 - NEAR) <= share <= 1 / times:
                break
            if promised > NEAR:
                self.factor = float(np.clip((before - share) / promised, 0.2, 5.0))
            elif share <= 1 / times:
                break
            else:  # what went before was thought to be enough
                before = share
        enough = [t for t in tried if t[0] <= 1 / times]
        if not enough:
            best = min(tried)[0]
            raise RecipeError(
                f"the target {times:g}x latency was not reached: {1 / best:.2f}x was measured in the engine; allow "
                "more to go (`structure: [channels, branches]`, `most`), or ask for less"
            )
        self.reached, choice = max(enough, key=lambda t: t[0])
        return choice

    def _choice(self, offers: list[Offer], before: float, times: float, priced: bool) -> Choice:
        def cost(choice: Choice) -> float:
            return before - self.factor * _promised(offers, choice) / self.stairs.dense

        most = bought(offers, 1e18) if priced else uniform(offers, 1.0)
        if cost(most) > 1 / times:  # measure how far all gets
            return most
        if not priced:
            return reaching(offers, 1 / times, cost, "the share of the latency", priced=False)
        missing = (before - 1 / times) * self.stairs.dense / self.factor
        return cheapest(offers, missing) or reaching(offers, 1 / times, cost, "the share of the latency", priced=True)


def cheapest(offers: Sequence[Offer], saved: float) -> Choice | None:
    """What goes so that at least so much is saved and least is lost, by an integer program; None if it finds nothing.

    A branch that goes takes its groups along: what these would save and lose by themselves is taken back.

    >>> one = Offer([1, 2], (0, 1, 2), np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0, 4.0]))
    >>> two = Offer([5], (0, 1), np.array([0.0, 1.5]), np.array([0.0, 3.0]))
    >>> cheapest([one, two], 3.0), cheapest([one, two], 4.5), cheapest([one, two], 9.0)
    ([0, 1], [1, 1], None)
    """
    units: list[list[Option]] = [
        [{"loss": float(loss), "ms": -float(gain)} for loss, gain in zip(o.loss, o.saved, strict=True)] for o in offers
    ]
    pairs = [
        Pair((number, 1), (inside, k), {"loss": -min(0.0, float(offers[inside].loss[k])),
                                        "ms": float(offers[inside].saved[k])})
        for number, offer in enumerate(offers) if offer.branch
        for inside in offer.inside
        for k in range(1, len(offers[inside].counts))
    ]  # fmt: skip
    chosen = allocate(units, "loss", {"ms": -saved}, pairs)
    if chosen is None:
        return None
    found = [offer.counts[k] for offer, k in zip(offers, chosen, strict=True)]
    for offer, count in zip(offers, found, strict=True):
        if offer.branch and count:
            found = [0 if k in offer.inside else n for k, n in enumerate(found)]
    return found


def _promised(offers: list[Offer], choice: Choice) -> float:
    """The milliseconds that the stairs say a choice saves."""
    return sum(
        float(offer.saved[list(offer.counts).index(count)]) for offer, count in zip(offers, choice, strict=True)
    )
