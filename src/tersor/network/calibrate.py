"""One streaming pass over the calibration data that collects Statistics of every site, in constant memory."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tersor.errors import CalibrationError, TersorError
from tersor.network.chunks import channels_last as laid_out
from tersor.network.chunks import cut, in_order, workers
from tersor.network.network import LINEARS, Network, title, walk
from tersor.network.sites import Plan
from tersor.observers import Statistics, merge, observe, same_batch
from tersor.observers.compare import Estimate
from tersor.observers.quality import CalibrationQuality
from tersor.task import batch_size
from tersor.terminal import Shown


@dataclass(frozen=True)
class Calibration:
    """The result of one calibration pass.

    Args:
        statistics: of every observed node, by graph name.
        means: float mean per output channel of every weighted layer over the first samples, by graph name.
        samples: the number of samples.
        mean_samples: the number of samples that the means are taken over.
    """

    statistics: dict[str, Statistics]
    means: dict[str, Tensor]
    samples: int
    mean_samples: int

    def of_group(self, plan: Plan, group: str) -> Statistics:
        """The statistics of a group of sites: those of all its sources, merged."""
        sources = [s.node for s in plan.activations() if s.group == group and s.source]
        found = [self.statistics[n] for n in dict.fromkeys(sources)]
        total = found[0]
        for more in found[1:]:
            total = merge(total, more)
        return total


@dataclass(frozen=True, repr=False)
class Calibrated(Shown):
    """One calibration pass, and every estimator's result for each site, by name."""

    plan: Plan
    calibration: Calibration
    estimates: dict[str, list[Estimate]]
    chosen: dict[str, str]
    verdict: CalibrationQuality


def calibrate(
    network: Network,
    values: Collection[str],
    batches: Iterable[tuple[Any, ...]],
    layers: Collection[str] = (),
    mean_samples: int = 0,
    channels_last: Collection[str] = (),
    keep: int = 0,
    on_batch: Callable[[int], None] = lambda samples: None,
) -> Calibration:
    """Stream the batches through the float network and collect statistics of values and means of layers.

    Args:
        values: the nodes whose values are observed, by graph name.
        layers: the layers whose outputs' channel means are taken, over the first ``mean_samples`` samples.
        channels_last: nodes whose channels are their last dimension, and not dimension 1.
        keep: if not 0, a row is one vector of channels (a token, a position) instead of a sample, and this number
            of rows is kept in ``Statistics.sample``.
        on_batch: called with the number of samples after each batch.

    Raises:
        CalibrationError: naming the layer with a non-finite value, or the batch that the model rejects.
    """
    values, layers = frozenset(values), frozenset(layers)
    statistics: dict[str, Statistics] = {}
    sums: dict[str, tuple[Any, int]] = {}
    first: list[tuple[int, ...]] = []
    samples, counted, alike = 0, 0, True
    tensors = laid_out(network)

    def chunks() -> Iterator[_Chunk]:
        nonlocal counted, alike, first
        for number, inputs in enumerate(batches):
            shapes = [tuple(x.shape) for x in inputs]
            # Take means over samples of one shape, which bias correction can run as one batch.
            alike = alike and (first := first or shapes) and [s[1:] for s in shapes] == [s[1:] for s in first]
            parts = cut(network, inputs, mean_samples - counted if alike else 0)
            for k, part in enumerate(parts):
                counting = bool(alike) and counted < mean_samples
                yield _Chunk(number, shapes, part, k == 0, k == len(parts) - 1, counting)
                counted += batch_size(part) if counting else 0

    def seen(chunk: _Chunk) -> _ChunkStatistics:
        means = layers if chunk.counting else frozenset()
        return _look(network, tensors, chunk, values, means, channels_last, keep)

    batch: dict[str, Statistics] = {}
    with workers() as pool:
        for chunk, result in in_order(pool, seen, chunks()):
            found = result()
            batch = found.statistics if chunk.begins else _merged(same_batch, batch, found.statistics)
            for name, (total, rows) in found.sums.items():
                before = sums.get(name, (0.0, 0))
                sums[name] = (before[0] + total, before[1] + rows)
            samples += batch_size(chunk.inputs)
            if chunk.ends:
                statistics = _merged(merge, statistics, batch)
                on_batch(samples)
    means = {name: total / rows for name, (total, rows) in sums.items()}
    return Calibration(statistics, means, samples, counted)


@dataclass(frozen=True)
class _Chunk:
    """A part of one batch; ``counting``: its channel means are wanted."""

    batch: int
    shapes: list[tuple[int, ...]]
    inputs: tuple[Tensor, ...]
    begins: bool
    ends: bool
    counting: bool


@dataclass(frozen=True)
class _ChunkStatistics:
    statistics: dict[str, Statistics]
    sums: dict[str, tuple[Tensor, int]]


def _look(
    network: Network,
    tensors: dict[str, Tensor],
    chunk: _Chunk,
    values: frozenset[str],
    layers: frozenset[str],
    channels_last: Collection[str],
    keep: int,
) -> _ChunkStatistics:
    found = _ChunkStatistics({}, {})

    def visit(node: fx.Node, value: Any) -> None:
        if node.name in values:
            axis = -1 if node.name in channels_last else 1
            seen = value.movedim(axis, -1).reshape(-1, value.shape[axis]) if keep else value
            try:
                statistics = observe(None, seen, channel_axis=1 if keep else axis, keep=keep)
            except TersorError as error:
                raise CalibrationError(f"{title(node)}: {error}") from error
            if statistics is not None:
                found.statistics[node.name] = statistics
        if node.name in layers:
            found.sums[node.name] = channel_sum(node, value)

    try:
        walk(network, chunk.inputs, visit, tensors=tensors)
    except TersorError:
        raise
    except Exception as error:
        raise CalibrationError(
            f"the model cannot run calibration batch {chunk.batch} of shapes {chunk.shapes}: {error}. Every batch "
            "must have the form of Task.example, except for the first dimension"
        ) from error
    return found


def _merged(
    how: Callable[[Statistics, Statistics], Statistics], a: dict[str, Statistics], b: dict[str, Statistics]
) -> dict[str, Statistics]:
    return a | {name: how(a[name], new) if name in a else new for name, new in b.items()}


def channel_sum(layer: fx.Node, value: Tensor) -> tuple[Tensor, int]:
    """The sum of each output channel of a layer's value, in float64, and the number of values."""
    axis = channel_axis(layer, value)
    if axis == 1 and value.ndim > 2:  # float32 within each row is much faster, and rows are short
        total = value.flatten(2).sum(2).sum(0, dtype=torch.float64)
    else:
        total = value.sum([d for d in range(value.ndim) if d != axis], dtype=torch.float64)
    return total, value.numel() // len(total)


def channel_axis(layer: fx.Node, value: Tensor) -> int:
    """The channel dimension of a layer's value: the last for a linear layer, otherwise 1."""
    return value.ndim - 1 if layer.target in LINEARS else 1
