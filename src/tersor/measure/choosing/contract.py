"""The contract on a metric: what may be lost, whether it was kept, and how many samples would prove it."""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import TaskError
from tersor.measure.metric import paired_interval, tango
from tersor.words import said

_DROP = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*")
MOST = 10**9
"""Samples beyond which no number is told."""


@dataclass(frozen=True)
class Allowed:
    """How much of a metric may be lost.

    Args:
        amount: in the unit in which the metric is shown: points for a fraction, else the metric's own; or in percent.
        relative: percent of the metric before.
    """

    amount: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str | float) -> "Allowed":
        """From ``0.5`` or ``0.5%``.

        Raises:
            TaskError: anything else, with what is accepted.

        >>> Allowed.parse("0.5%"), Allowed.parse(1)
        (Allowed(amount=0.5, relative=True), Allowed(amount=1.0, relative=False))
        """
        found = _DROP.fullmatch(str(text))
        if found is None or isinstance(text, bool):
            raise TaskError(
                f"the largest drop is {text!r}: give a number that is not negative, such as 0.5 (points of an "
                "accuracy, or the metric's own unit), or a share of the metric, such as 0.5%"
            )
        return cls(float(found[1]), bool(found[2]))

    def __str__(self) -> str:
        return f"{self.amount:g}%" if self.relative else f"{self.amount:g}"

    def bound(self, before: float, fraction: bool) -> float:
        """The drop that is allowed, in the metric's own unit.

        Args:
            before: the metric of the original network.
            fraction: whether the metric is a fraction, which is shown in percent.

        >>> Allowed(0.5).bound(0.93, fraction=True), Allowed(0.5).bound(80.0, fraction=False)
        (0.005, 0.5)
        >>> Allowed(1, relative=True).bound(80.0, fraction=False)
        0.8
        """
        if self.relative:
            return abs(before) * self.amount / 100
        return self.amount / 100 if fraction else self.amount


@dataclass(frozen=True)
class Verdict:
    """Whether a contract was kept, on samples that no choice has touched; all in the metric's own unit.

    Args:
        bound: the drop that is allowed.
        drop: the mean drop; positive if the compressed network is worse.
        interval: its 95 % interval.
        samples: the number of scores.
        needed: how many samples of this kind would prove it, about; None: no number would.
    """

    bound: float
    drop: float
    interval: tuple[float, float]
    samples: int
    needed: int | None

    @property
    def kept(self) -> bool:
        """Whether the mean drop is allowed."""
        return self.drop <= self.bound

    @property
    def proven(self) -> bool:
        """Whether chance does not explain that it is."""
        return self.interval[1] <= self.bound

    @property
    def broken(self) -> bool:
        """Whether chance does not explain that it is not."""
        return self.interval[0] > self.bound

    def sentence(self, fraction: bool) -> str:
        """What is known, with all figures."""
        drop, bound = (_amount(value, fraction) for value in (self.drop, self.bound))
        low, high = (_amount(value, fraction) for value in self.interval)
        facts = {"drop": drop, "bound": bound, "low": low, "high": high, "samples": self.samples}
        if self.proven:
            return said("The contract is kept: {drop} of {bound} lost ({low} to {high}, {samples} samples).", **facts)
        if self.broken:
            return said("The contract is broken: {drop} of {bound} lost ({low} to {high}, {samples} samples).", **facts)
        if self.needed is None:
            return said("Not kept: {drop} of {bound} lost; chance may explain it ({low} to {high}, {samples} samples).",
                     **facts)  # fmt: skip
        return said("Not proven with {samples} samples: {drop} of {bound} lost ({low} to {high}); {needed} would do.",
                 **facts, needed=self.needed)  # fmt: skip


def _amount(value: float, fraction: bool) -> str:
    """A drop as it is shown: in points for a fraction."""
    return said("{value} points", value=f"{100 * value:.2f}") if fraction else f"{value:.4g}"


def judged(before: Tensor, after: Tensor, bound: float, *, higher_is_better: bool, seed: int = 0) -> Verdict:
    """The verdict from paired scores.

    Raises:
        TaskError: the numbers of samples differ.

    >>> judged(torch.ones(5000), torch.ones(5000), 0.005, higher_is_better=True).proven
    True
    """
    interval = paired_interval(before, after, higher_is_better=higher_is_better, seed=seed)
    drops = (before.double() - after.double()) * (1 if higher_is_better else -1)
    drop = float(drops.mean())
    return Verdict(bound, drop, interval, len(drops), _needed(drops, drop, interval, bound))


def _needed(drops: Tensor, drop: float, interval: tuple[float, float], bound: float) -> int | None:
    """How many samples would bring the interval's upper end to the bound, if all else stays as it is."""
    if interval[1] <= bound:
        return len(drops)
    if drop >= bound:
        return None
    if not bool(((drops == 0) | (drops.abs() == 1)).all()):
        found = len(drops) * ((interval[1] - drop) / (bound - drop)) ** 2
        return math.ceil(found) if found < MOST else None
    worse, better = (float((drops == sign).double().mean()) for sign in (1, -1))

    def high(samples: int) -> float:
        return tango(worse * samples, better * samples, samples)[1]

    more = len(drops)
    while high(more) > bound:
        more *= 2
        if more > MOST:
            return None
    low = more // 2
    while more - low > max(1, more // 200):
        middle = (low + more) // 2
        low, more = (middle, more) if high(middle) > bound else (low, middle)
    return more


def halves(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two disjoint halves of the samples by lot, in order: one to choose by, one to judge by.

    >>> [len(half) for half in halves(5)]
    [2, 3]
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: count // 2].sort().values, order[count // 2 :].sort().values
