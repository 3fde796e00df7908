"""Changes that are tried: how far they take a network's outputs from the dense ones."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from tersor.network.network import Network, walk
from tersor.pipeline.graph.batches import Batch, some
from tersor.pipeline.graph.pruning.padding import real_tokens

SAMPLES = 128


@dataclass(frozen=True, eq=False)
class Trial:
    """A change of a network that is not made, only computed.

    Args:
        tensors: other values of the network's tensors, by name.
        values: what becomes of the values of operators, by name.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def run(self, network: Network, batch: Batch) -> list[Tensor]:
        """The outputs with the change."""

        def change(node: fx.Node, value: Any) -> Any:
            made = self.values.get(node.name)
            return None if made is None else made(value)

        return outputs(network, batch, change, self.tensors)


def losses(dense: Network, network: Network, trials: Iterable[Trial], batches: list[Batch]) -> list[float]:
    """For each trial by how much the outputs' divergence from the dense ones grows, a sample; at least 0.

    Of classes the divergence is Kullback and Leibler's, of other outputs half the squared difference over their
    variance: in units of ``Fisher``.
    """
    first = list(some(iter(batches), SAMPLES))
    samples = sum(len(batch[0]) for batch in first)
    wanted = [outputs(dense, batch) for batch in first]
    before = [sum(map(divergence, y, outputs(network, b))) for y, b in zip(wanted, first, strict=True)]
    found = list[float]()
    for trial in trials:
        apart = (sum(map(divergence, y, trial.run(network, b))) for y, b in zip(wanted, first, strict=True))
        found.append(max(0.0, sum(apart) - sum(before)) / samples)
    return found


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


def outputs(
    network: Network, batch: Batch, change: Callable[[fx.Node, Any], Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> list[Tensor]:
    """The outputs of floating point, without those of padding tokens."""
    values = walk(network, batch, change, tensors=tensors)
    return [real_tokens(batch, v) for v in values if isinstance(v, Tensor) and v.is_floating_point()]
