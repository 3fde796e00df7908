"""What a network loses with each branch: its mean stands in its place, since that can be added to what follows."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from tersor.network.groups import Branch
from tersor.network.network import CONVOLUTIONS, Network, walk
from tersor.pipeline.graph.batches import Batch, some
from tersor.pipeline.graph.pruning.padding import real
from tersor.pipeline.graph.pruning.trials import SAMPLES, Trial


def without(network: Network, branches: Sequence[Branch], batches: list[Batch]) -> list[Trial]:
    """For each branch its mean, by channel, in its place."""
    means = _means(network, branches, list(some(iter(batches), SAMPLES)))
    return [Trial(values={b.value: lambda y, mean=means[b.value]: mean.expand_as(y)}) for b in branches]


def _means(network: Network, branches: Sequence[Branch], batches: list[Batch]) -> dict[str, Tensor]:
    """The mean of each branch's value by channel, in a shape that can be added."""
    names = {branch.value: _channels(network, branch) for branch in branches}
    found, counts, shapes = dict[str, Tensor](), dict[str, int](), dict[str, list[int]]()

    def see(node: fx.Node, value: Any) -> None:
        if node.name in names:
            dim = names[node.name]
            last = value.movedim(dim, -1)
            rows = last.reshape(-1, last.shape[-1])[real(reading, value, dim)].double()
            found[node.name] = found.get(node.name, 0) + rows.sum(0)
            counts[node.name] = counts.get(node.name, 0) + len(rows)
            shapes[node.name] = [-1 if d == dim % value.ndim else 1 for d in range(value.ndim)]

    for reading in batches:
        walk(network, reading, see)
    return {n: (total / max(1, counts[n])).float().view(shapes[n]) for n, total in found.items()}


def _channels(network: Network, branch: Branch) -> int:
    """The dimension of channels: that of the branch's last product."""
    last = [n for n in network.operators() if n.name in branch.operators]
    return 1 if any(n.target in CONVOLUTIONS for n in last) else -1
