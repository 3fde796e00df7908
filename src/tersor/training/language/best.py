"""The training of codes: all batches in a random order, epoch by epoch; the best epoch on held-out batches is kept."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tersor.errors import CalibrationError

OnEpoch = Callable[[int, float], None]
# The share of the learning rate that is left at the end.
LAST = 0.05


@dataclass(frozen=True)
class Trained:
    """What a training gave.

    Args:
        start: the held-out error before it.
        curve: the held-out error after each epoch.
        kept: the epoch whose result is kept; 0: what there was before, since no epoch improved on them.
    """

    start: float
    curve: tuple[float, ...]
    kept: int

    @property
    def error(self) -> float:
        """The held-out error of what is kept."""
        return self.curve[self.kept - 1] if self.kept else self.start

    def row(self) -> dict[str, Any]:
        """As plain values, for files."""
        return {"before": self.start, "after": self.error, "curve": list(self.curve), "kept": self.kept}


@dataclass(frozen=True)
class TokenError:
    """What is minimized.

    Args:
        sums: of a student and a batch, the sum over all tokens and their number.
        name: as errors call it; ``rate``: the option to lower if it is not finite.
    """

    sums: Callable[[Any, Any], tuple[Tensor, int]]
    name: str
    rate: str

    @torch.no_grad()
    def mean(self, student: nn.Module, batches: Iterable[Any]) -> float:
        """Its mean over all tokens."""
        sums = [tuple(map(float, self.sums(student, batch))) for batch in batches]
        return sum(total for total, _ in sums) / sum(tokens for _, tokens in sums)


def train_best(
    student: nn.Module,
    optimizer: Optimizer,
    objective: TokenError,
    batch: Callable[[int], Any],
    count: int,
    held: int,
    epochs: int,
    seed: int,
    on_epoch: OnEpoch | None,
) -> Trained:
    """Train a student in place; it ends as it was in its best epoch, or as it began.

    Args:
        batch: gives one of the ``count`` batches; the last ``held`` are held out.
        on_epoch: called with the number of epochs done and the held-out error.

    Raises:
        CalibrationError: an error that is not finite, with the epoch.
    """
    judging = range(count - held, count)
    start = objective.mean(student, map(batch, judging))
    best, kept, curve, least = copy.deepcopy(student.state_dict()), 0, list[float](), start
    first = [group["lr"] for group in optimizer.param_groups]
    generator, total, done = torch.Generator().manual_seed(seed), epochs * (count - held), 0
    for epoch in range(epochs):
        for number in torch.randperm(count - held, generator=generator).tolist():
            for group, rate in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = rate * cosine(done / total)
            _update(student, batch(number), optimizer, objective, epoch)
            done += 1
        curve.append(objective.mean(student, map(batch, judging)))
        if on_epoch is not None:
            on_epoch(epoch + 1, curve[-1])
        if curve[-1] < least:
            best, kept, least = copy.deepcopy(student.state_dict()), epoch + 1, curve[-1]
    student.load_state_dict(best)
    return Trained(start, tuple(curve), kept)


def _update(student: nn.Module, batch: Any, optimizer: Optimizer, objective: TokenError, epoch: int) -> None:
    with torch.enable_grad():
        total, tokens = objective.sums(student, batch)
        loss = total / tokens
    if not math.isfinite(loss.item()):
        raise CalibrationError(f"{objective.name} is {loss.item()} in epoch {epoch + 1}: lower `{objective.rate}`")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def cosine(done: float, last: float = LAST) -> float:
    """The factor of the rate when a share ``done`` of all updates is done: from 1 to ``last``.

    >>> [round(cosine(done), 2) for done in (0.0, 0.5, 1.0)]
    [1.0, 0.53, 0.05]
    """
    return last + (1 - last) * (1 + math.cos(math.pi * done)) / 2
