"""Calibration batches for the steps of the pipeline: split, retained, limited to a number of samples, joined."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tersor.network.network import Network
from tersor.task import Task, batch_size

Batch = tuple[Tensor, ...]


def passing(task: Task, network: Network) -> Iterator[Batch]:
    """One pass over the calibration data, in batches of the network's batch size if that is fixed."""
    for inputs in task.calibration_batches():
        if network.dynamic_batch:
            yield inputs
        else:
            yield from (part for part, _ in cut(inputs, batch_size(network.example)))


def cut(inputs: Batch, size: int) -> Iterator[tuple[Batch, int]]:
    """Split inputs into parts of exactly ``size`` samples, each with its number of real samples.

    The last part is padded with copies of its last sample.

    >>> [(part[0].tolist(), real) for part, real in cut((torch.arange(3),), 2)]
    [([0, 1], 2), ([2, 2], 1)]
    """
    count = batch_size(inputs)
    for start in range(0, count, size):
        real = min(size, count - start)
        rows = torch.arange(start, start + size).clamp(max=count - 1)
        yield tuple(x[rows] if x.ndim else x for x in inputs), real


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's random numbers inside the block, so that random calibration data is the same in every pass.

    >>> state = torch.get_rng_state()
    >>> with seeded(0):
    ...     _ = torch.rand(1)
    >>> bool((torch.get_rng_state() == state).all())
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def some(batches: Iterator[Batch], samples: int) -> Iterator[Batch]:
    """Batches until at least ``samples`` samples have been yielded."""
    seen = 0
    for inputs in batches:
        yield inputs
        seen += batch_size(inputs)
        if seen >= samples:
            return


def exactly(batches: Iterator[Batch], samples: int, dynamic: bool) -> Iterator[Batch]:
    """Batches of exactly ``samples`` samples in total, the last batch cut; whole batches if the batch is not dynamic.

    >>> [len(x) for (x,) in exactly(iter([(torch.zeros(4),), (torch.zeros(4),)]), 6, dynamic=True)]
    [4, 2]
    """
    left = samples
    for inputs in some(batches, samples):
        yield tuple(x[:left] if x.ndim and dynamic else x for x in inputs)
        left -= batch_size(inputs)


def keeping(batches: Iterator[Batch], kept: list[Batch], samples: int) -> Iterator[Batch]:
    """Yield the batches and append the first ones to ``kept``, since a second pass may have another order."""
    seen = 0
    for inputs in batches:
        if seen < samples:
            kept.append(inputs)
            seen += batch_size(inputs)
        yield inputs


def one_batch(network: Network, batches: Sequence[Batch], samples: int) -> Batch:
    """The first ``samples`` samples as one batch; the first batch if the network's batch size is fixed."""
    return joined(batches, samples) if network.dynamic_batch else batches[0]


def joined(batches: Sequence[Batch], samples: int) -> Batch:
    """The first ``samples`` samples as one batch, up to the first batch of a different shape."""
    parts: list[Batch] = []
    for inputs in batches:
        if any(a.shape[1:] != b.shape[1:] for a, b in zip(inputs, batches[0], strict=True)):
            break
        parts.append(inputs)
    columns = zip(*parts, strict=True)
    return tuple(torch.cat(c)[:samples] if c[0].ndim else c[0] for c in columns)
