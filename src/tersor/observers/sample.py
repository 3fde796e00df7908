"""The rows that were seen: fingerprints that detect repetitions, and a reservoir that keeps a few rows."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KEYS = 1024  # fingerprints kept; up to as many distinct rows the count of repetitions is exact
_POSITIONS = 64  # values of a row from which its key is computed


def strided(flat: Tensor, most: int) -> Tensor:
    """At most ``most`` values of each row of ``flat`` ``[rows, n]``, evenly spread, the same for every batch.

    The stride is coprime to n, and therefore to the width, height and number of channels whose product is n: it
    visits all columns and channels equally.

    >>> strided(torch.arange(12.0).reshape(2, 6), 3)
    tensor([[ 0.,  5.],
            [ 6., 11.]])
    """
    n = flat.shape[1]
    if n <= most:
        return flat
    stride = -(-n // most)
    while math.gcd(stride, n) > 1:
        stride += 1
    return flat[:, ::stride]


def keys_of(rows: Tensor, seed: int = 0) -> np.ndarray:
    """A 64-bit key of each row's content, uint64 ``[rows]``, from 64 of its values spread evenly.

    Equal rows have equal keys; different rows do not, except with a probability of 2⁻⁶⁴ or if
    they agree in all of those values. ``rows`` is float32 ``[rows, n]`` on the CPU.
    """
    values = strided(rows, _POSITIONS).contiguous()
    bits = values.numpy().view(np.uint32).astype(np.uint64)
    index = np.arange(1, bits.shape[1] + 1, dtype=np.uint64)
    weights = _mixed(index + np.uint64(seed % 2**32) * np.uint64(2**32)) | np.uint64(1)
    return _mixed(_mixed(bits + index).__mul__(weights).sum(axis=1, dtype=np.uint64))


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): every bit of x reaches every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """How often each of the rows with the 1024 smallest keys was seen.

    A key that was once dropped can never return, because the kept keys only get smaller: the counts are exact,
    and merging is associative and independent of the order. The keys are practically random, so these rows
    represent all rows.
    """

    keys: np.ndarray  # uint64, ascending, distinct
    counts: np.ndarray  # int64

    @property
    def repeated(self) -> float:
        """The share of rows seen before: 0 if all differ, 0.5 if each occurred twice."""
        total = int(self.counts.sum())
        return 1.0 - len(self.keys) / total if total else 0.0

    def merged(self, other: "Fingerprints") -> "Fingerprints":
        """Both together."""
        keys = np.concatenate((self.keys, other.keys))
        return _counted(keys, np.concatenate((self.counts, other.counts)))


def fingerprints_of(rows: Tensor) -> Fingerprints:
    """The fingerprints of one batch, float32 ``[rows, n]`` on the CPU."""
    keys = keys_of(rows)
    return _counted(keys, np.ones(len(keys), dtype=np.int64))


def _counted(keys: np.ndarray, counts: np.ndarray) -> Fingerprints:
    distinct, place = np.unique(keys, return_inverse=True)
    sums = np.bincount(place, weights=counts, minlength=len(distinct)).astype(np.int64)
    return Fingerprints(distinct[:KEYS], sums[:KEYS])


@dataclass(frozen=True, eq=False)
class Sample:
    """A reservoir: the ``capacity`` distinct rows whose seeded keys are the smallest.

    A key depends on the row's content alone, so every row is equally likely to be kept, merging is associative and
    independent of the order, and two workers keep exactly the rows that one would have kept. A row is one
    index of dimension 0 with all its values, in float32: the caller chooses a capacity that fits the memory.
    Rows of different shapes may lie side by side.

    >>> a = sample_of(torch.arange(6.0).reshape(3, 2), capacity=2)
    >>> b = sample_of(torch.arange(6.0, 12.0).reshape(3, 2), capacity=2)
    >>> len(a.merged(b).rows), a.merged(b).rows[0].shape
    (2, torch.Size([2]))
    """

    capacity: int
    seed: int
    keys: tuple[int, ...]
    rows: tuple[Tensor, ...]

    def stacked(self) -> Tensor:
        """The rows as one batch; raises RuntimeError (from torch.stack) if their shapes differ."""
        return torch.stack(self.rows)

    def merged(self, other: "Sample") -> "Sample":
        """The rows with the smallest keys of both, each once."""
        rows = dict(zip(other.keys + self.keys, other.rows + self.rows, strict=True))
        keys = tuple(sorted(rows)[: self.capacity])
        return Sample(self.capacity, self.seed, keys, tuple(rows[k] for k in keys))


def sample_of(x: Tensor, capacity: int, seed: int = 0) -> Sample:
    """The sample of one batch ``[rows, ...]``."""
    keys = keys_of(x.reshape(x.shape[0], -1).float().cpu(), seed)
    place = {int(key): i for i, key in enumerate(keys)}
    chosen = tuple(sorted(place)[:capacity])
    rows = tuple(x[place[key]].detach().to("cpu", torch.float32, copy=True) for key in chosen)
    return Sample(capacity, seed, chosen, rows)
