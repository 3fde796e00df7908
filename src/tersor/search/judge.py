"""How candidates are compared: by the scores of one half of the samples, so that the other half can judge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tersor.measure.choosing.contract import Verdict, halves, judged
from tersor.measure.metric import MetricResult
from tersor.search.goal import Goal
from tersor.search.trial import Trial

LEAST = 20
"""Scores below which all choose and all judge."""
NEAR, CLOSE = 0.02, 0.01
"""Speeds that differ by less are equal; misses of a speed or size by less are tried again, not given up."""


@dataclass(frozen=True, eq=False)
class Judge:
    """The original's metric, what is asked, and which samples choose.

    Args:
        goal: what is asked.
        before: the metric of the original network in the engine.
        higher_is_better: the direction of the metric.
        fraction: whether it is shown in percent.
        choosing, judging: the positions of the samples; None: all, where there are too few or only one number.
    """

    goal: Goal
    before: MetricResult
    higher_is_better: bool
    fraction: bool
    choosing: Tensor | None = None
    judging: Tensor | None = None

    @classmethod
    def of(cls, goal: Goal, before: MetricResult, *, higher_is_better: bool, fraction: bool, seed: int) -> "Judge":
        """With the samples divided by lot."""
        if before.scores is None or len(before.scores) < LEAST:
            return cls(goal, before, higher_is_better, fraction)
        return cls(goal, before, higher_is_better, fraction, *halves(len(before.scores), seed))

    @property
    def bound(self) -> float:
        """What may be lost, in the metric's own unit; infinite if nothing was said."""
        drop = self.goal.max_drop
        return math.inf if drop is None else drop.bound(self.before.value, self.fraction)

    @property
    def apart(self) -> bool:
        """Whether one half chooses and another one judges."""
        return self.judging is not None

    def drop(self, trial: Trial) -> tuple[float, float]:
        """The mean drop on the samples that choose, and its standard error; positive if the candidate is worse."""
        sign = 1 if self.higher_is_better else -1
        if self.before.scores is None or trial.scores is None:
            return sign * (self.before.value - trial.facts.metric), 0.0
        drops = sign * (self.before.scores - trial.scores.double())
        drops = drops if self.choosing is None else drops[self.choosing]
        return float(drops.mean()), float(drops.std(correction=0)) / math.sqrt(len(drops))

    def loses_little(self, trial: Trial) -> bool:
        """Whether what is lost is allowed, with a standard error to spare: others will judge."""
        return not trial.failed and sum(self.drop(trial)) <= self.bound

    def fits(self, trial: Trial) -> bool:
        """Whether it is as fast and as small as is asked."""
        fast = self.goal.min_speedup is None or trial.facts.speedup >= self.goal.min_speedup
        return not trial.failed and fast and (self.goal.max_bytes is None or trial.facts.bytes <= self.goal.max_bytes)

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The best of those that keep all that is asked; of equally fast ones that which loses least.

        If none does, the nearest: first what is lost counts, then speed and size.
        """
        made = [t for t in trials if not t.failed]
        if not made:
            return None
        good = [t for t in made if self.loses_little(t) and self.fits(t)]
        if good and self.goal.fastest:
            top = max(t.facts.over_first for t in good)
            return min((t for t in good if t.facts.over_first >= top * (1 - NEAR)), key=self._lost)
        if good:
            return min(good, key=self._lost)
        return min([t for t in made if self.loses_little(t)], key=self._unfit, default=min(made, key=self._short))

    def verdict(self, trial: Trial) -> Verdict | None:
        """On the samples that no choice has touched; None without scores of samples or a bound."""
        if self.before.scores is None or trial.scores is None or math.isinf(self.bound):
            return None
        where = slice(None) if self.judging is None else self.judging
        scores = self.before.scores[where], trial.scores.double()[where]
        return judged(*scores, self.bound, higher_is_better=self.higher_is_better)

    def _lost(self, trial: Trial) -> float:
        return self.drop(trial)[0]

    def _unfit(self, trial: Trial) -> float:
        """How far it is from what is asked, as a factor."""
        facts, goal = trial.facts, self.goal
        slow = 1.0 if goal.min_speedup is None else goal.min_speedup / facts.speedup
        return max(1.0, slow) * max(1.0, 1.0 if goal.max_bytes is None else facts.bytes / goal.max_bytes)

    def _short(self, trial: Trial) -> tuple[float, float]:
        return (self._lost(trial) if self.goal.fastest else 0.0), self._unfit(trial)
