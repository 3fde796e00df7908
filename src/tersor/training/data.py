"""The batches of a training: passes over ``train()``, shared among processes."""

import copy
import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.errors import TaskError
from tersor.user_code import users

# Batches that a pass without a length may have, before it is taken for endless.
ENDLESS = 100_000
_AGAIN = "let train be a function that makes a fresh iterable at every call"
_EMPTY = f"train() yielded no batch: {_AGAIN}, and check that the data is there"


class Batches:
    """The training data, read anew for each epoch.

    Each epoch begins with its own seed for the generators of Python, NumPy and PyTorch, so a resumed training sees the
    same data as one that was never stopped, if ``train()`` draws from these.

    Args:
        train: the task's ``train()``.
        seed: of everything random.
        rank, world: of this process and of how many; each takes every ``world``-th batch, whole rounds only.
    """

    def __init__(self, train: Callable[[], Iterable[Any]], seed: int, rank: int = 0, world: int = 1) -> None:
        self.train, self.seed, self.rank, self.world = train, seed, rank, world
        self._last: Any = None

    def epoch(self, number: int, device: torch.device | None = None) -> Iterator[Any]:
        """Copies of the batches of an epoch, counted from 0, on the device.

        Raises:
            TaskError: ``train()`` raises, or yields no batch.
        """
        seeded(self.seed, number)
        count = 0
        for batch in self._own_rounds():
            count += 1
            yield moved(batch, device)
        if not count:
            several = f" for {self.world} processes" if self.world > 1 else ""
            raise TaskError(f"train() yielded too few batches{several} in epoch {number + 1}: {_AGAIN}")

    def first(self) -> Any:
        """A copy of the first batch of the first epoch, whatever the process.

        Raises:
            TaskError: there is none.
        """
        seeded(self.seed, 0)
        for batch in self._all(self._iterable()):
            return moved(batch)
        raise TaskError(_EMPTY)

    def steps(self, most: int | None = None) -> int:
        """The number of steps of an epoch: the length of the data, or counted in a pass over it, up to ``most``.

        Raises:
            TaskError: the data is empty, or has no end and no limit.
        """
        seeded(self.seed, 0)
        iterable, count = self._iterable(), None
        try:
            count = len(iterable)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            rounds = ENDLESS if most is None else most * self.world
            count = sum(1 for _ in islice(self._all(iterable), rounds))
            if most is None and count == ENDLESS:
                raise TaskError(
                    "train() has no length, and no end within 100,000 batches: let it end, or give the step `train` a "
                    "number of `steps`"
                ) from None
        if not count:
            raise TaskError(_EMPTY)
        if count < self.world:
            raise TaskError(f"train() yields {count} batches for {self.world} processes: each needs one in every epoch")
        return min(count // self.world, count if most is None else most)

    def _own_rounds(self) -> Iterator[Any]:
        rounds = self._all(self._iterable())
        while len(group := list(islice(rounds, self.world))) == self.world:
            yield group[self.rank]

    def _iterable(self) -> Any:
        with users("train()", TaskError, "iterate over train() to debug it"):
            iterable = self.train()
        batches = hasattr(iterable, "__iter__") or hasattr(iterable, "__getitem__")
        if not batches or isinstance(iterable, (str, bytes, Mapping, Tensor)):
            raise TaskError(f"train() returned a {type(iterable).__name__}: return an iterable of batches")
        if isinstance(iterable, Iterator):
            if iterable is self._last:
                raise TaskError(f"train() returned the same {type(iterable).__name__} again, read before: {_AGAIN}")
            self._last = iterable
        return iterable

    def _all(self, iterable: Any) -> Iterator[Any]:
        with users("train()", TaskError, "iterate over train() to debug it"):
            yield from iterable


def seeded(seed: int, epoch: int) -> None:
    """Seed Python, NumPy and PyTorch for an epoch; callers restore their state."""
    value = (seed * 1_000_003 + epoch) % (1 << 32)
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


@contextmanager
def same_draws(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and PyTorch inside the block, and restore their state: what is compared draws the same.

    >>> with same_draws(0):
    ...     first = random.random()
    >>> with same_draws(0):
    ...     print(random.random() == first)
    True
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            seeded(seed, -1)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def moved(batch: Any, device: torch.device | None = None) -> Any:
    """The batch with copies of its tensors on the device: what a loss changes in place is not the caller's."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device or value.device, non_blocking=True, copy=True)
        if isinstance(value, MutableMapping) and not isinstance(value, dict):  # such as transformers' BatchEncoding
            made = copy.copy(value)
            made.update({key: moved(part, device) for key, part in value.items()})
            return made
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts = {f.name: moved(getattr(value, f.name), device) for f in dataclasses.fields(value) if f.init}
            return dataclasses.replace(value, **parts)
        return value

    return pytree.tree_map(move, batch)


def leaves_of(value: Any) -> list[Any]:
    """What a structure is made of, also mappings and dataclasses that PyTorch takes for one value.

    >>> from collections import UserDict
    >>> leaves_of(({"a": 1}, UserDict(b=2, c=[3])))
    [1, 2, 3]
    """
    found = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Mapping):
            found += leaves_of(list(leaf.values()))
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found += leaves_of([getattr(leaf, f.name) for f in dataclasses.fields(leaf)])
        else:
            found.append(leaf)
    return found
