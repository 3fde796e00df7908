"""What a network loses with each branch: the divergence of its outputs, measured."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from tersor.network.groups import Branch
from tersor.network.network import CONVOLUTIONS, Network, walk
from tersor.pipeline.graph.batches import Batch, some

SAMPLES = 128


def losses(dense: Network, network: Network, branches: Sequence[Branch], batches: list[Batch]) -> list[float]:
    """For each branch by how much the outputs' divergence from the dense ones grows when its mean stands in its place.

    A mean can be added to what follows, so that it is not lost; of classes the divergence is Kullback and Leibler's, of
    other outputs half the squared difference over their variance: in units of ``Fisher``.
    """
    first = list(some(iter(batches), SAMPLES))
    samples = sum(len(batch[0]) for batch in first)
    means = _means(network, branches, first)
    total = [0.0] * len(branches)
    for batch in first:
        wanted = _floats(walk(dense, batch))
        before = sum(map(divergence, wanted, _floats(walk(network, batch))))
        for number, branch in enumerate(branches):
            found = _floats(walk(network, batch, lambda node, value, b=branch: _meant(node, value, b, means)))
            total[number] += sum(map(divergence, wanted, found)) - before
    return [max(0.0, loss / samples) for loss in total]


def divergence(wanted: Tensor, found: Tensor) -> float:
    """Between two outputs, summed over samples.

    >>> import torch
    >>> divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    0.0
    """
    if wanted.ndim == 2 and wanted.shape[1] > 1:
        one, other = wanted.double().log_softmax(1), found.double().log_softmax(1)
        return float((one.exp() * (one - other)).sum())
    spread = float(wanted.std(correction=0)) or 1.0
    return float(((wanted - found).double() / spread).square().sum()) / 2


def _means(network: Network, branches: Sequence[Branch], batches: list[Batch]) -> dict[str, Tensor]:
    """The mean of each branch's value by channel, in a shape that can be added."""
    names = {branch.value: _channels(network, branch) for branch in branches}
    found: dict[str, Tensor] = {}

    def see(node: fx.Node, value: Any) -> None:
        if node.name in names:
            dims = [d for d in range(value.ndim) if d != names[node.name] % value.ndim]
            mean = value.double().mean(dims, keepdim=True) / len(batches)
            found[node.name] = found.get(node.name, 0) + mean

    for batch in batches:
        walk(network, batch, see)
    return {name: mean.float() for name, mean in found.items()}


def _channels(network: Network, branch: Branch) -> int:
    """The dimension of channels: that of the branch's last product."""
    last = [n for n in network.operators() if n.name in branch.operators]
    return 1 if any(n.target in CONVOLUTIONS for n in last) else -1


def _meant(node: fx.Node, value: Any, branch: Branch, means: dict[str, Tensor]) -> Any:
    return means[branch.value].expand_as(value) if node.name == branch.value else None


def _floats(values: Sequence[Any]) -> list[Tensor]:
    return [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]
