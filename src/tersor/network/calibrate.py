"""One streaming pass over the calibration data → Statistics of every site; memory does not grow with the data."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tersor.errors import CalibrationError, TersorError
from tersor.network.network import LINEARS, Network, title, walk
from tersor.network.sites import Plan
from tersor.observers import Statistics, merge, observe
from tersor.observers.compare import Estimate
from tersor.observers.verdict import Verdict
from tersor.task import batch_size


@dataclass(frozen=True)
class Calibration:
    """What one pass gathered.

    Args:
        statistics: of every observed node, by graph name.
        means: float mean per output channel of every weighted layer over the first samples, by graph name.
        samples: how many samples were seen; ``mean_samples``: over how many the means run.
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


@dataclass(frozen=True)
class Calibrated:
    """One calibration pass, and for each site (its name) what every estimator made of it."""

    plan: Plan
    calibration: Calibration
    estimates: dict[str, list[Estimate]]
    chosen: dict[str, str]
    verdict: Verdict


def calibrate(
    network: Network,
    plan: Plan,
    batches: Iterable[tuple[Any, ...]],
    mean_samples: int = 0,
    extra: Iterable[str] = (),
    on_batch: Callable[[int], None] = lambda samples: None,
) -> Calibration:
    """Stream the batches through the float network and observe the source of every group of sites.

    Args:
        mean_samples: over how many samples the channel means of the layers are taken (0: none).
        extra: more nodes to observe, by graph name.
        on_batch: called with the number of samples after each batch.

    Raises:
        CalibrationError: naming the layer where a value is not finite, or the batch that the model refuses.
    """
    sources = {s.node for s in plan.activations() if s.source} | set(extra)
    layers = {s.node for s in plan.weights()}
    statistics: dict[str, Statistics] = {}
    sums: dict[str, tuple[Any, int]] = {}
    first: list[tuple[int, ...]] = []
    samples, counted, alike, counting = 0, 0, True, False

    def visit(node: fx.Node, value: Any) -> None:
        if node.name in sources:
            try:
                seen = observe(statistics.get(node.name), value)
            except TersorError as error:
                raise CalibrationError(f"{title(node)}: {error}") from error
            if seen is not None:
                statistics[node.name] = seen
        if node.name in layers and counting:
            mean = channel_mean(node, value)
            rows = value.numel() // len(mean)
            total, seen_rows = sums.get(node.name, (0.0, 0))
            sums[node.name] = (total + mean * rows, seen_rows + rows)

    for number, inputs in enumerate(batches):
        shapes = [tuple(x.shape) for x in inputs]
        # Means are of samples of one shape, which bias correction can walk with as one batch.
        alike = alike and (first := first or shapes) and [s[1:] for s in shapes] == [s[1:] for s in first]
        try:
            for part in _parted(inputs, mean_samples - counted if alike else 0):
                counting = alike and counted < mean_samples
                walk(network, part, visit)
                counted += batch_size(part) if counting else 0
        except TersorError:
            raise
        except Exception as error:
            raise CalibrationError(
                f"the model cannot take calibration batch {number} of shapes {shapes}: {error}. Every batch must "
                "look like Task.example, but for its first dimension"
            ) from error
        samples += batch_size(inputs)
        on_batch(samples)
    means = {name: total / rows for name, (total, rows) in sums.items()}
    return Calibration(statistics, means, samples, counted)


def _parted(inputs: tuple[Tensor, ...], samples: int) -> list[tuple[Tensor, ...]]:
    """The batch, cut in two where only its first samples are wanted."""
    if not 0 < samples < batch_size(inputs):
        return [inputs]
    ends = (slice(0, samples), slice(samples, None))
    return [tuple(x[end] if x.ndim else x for x in inputs) for end in ends]


def channel_mean(layer: fx.Node, value: Tensor) -> Tensor:
    """The mean of each output channel of a layer's value, in float64."""
    axis = channel_axis(layer, value)
    return value.mean([d for d in range(value.ndim) if d != axis], dtype=torch.float64)


def channel_axis(layer: fx.Node, value: Tensor) -> int:
    """Where the output channels of a layer's value stand: last for a linear layer, else dimension 1."""
    return value.ndim - 1 if layer.target in LINEARS else 1
