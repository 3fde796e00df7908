"""What the quantization of each layer costs: records, kinds of layers, and which of them to keep in float."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import fx

from tersor.measure.fidelity import SignalNoise
from tersor.network.groups.costs import macs_of
from tersor.network.network import CONVOLUTIONS, EMBEDDINGS, LINEARS, Network, groups_of, op_name, title, weight_node
from tersor.words import said

Kind = Literal["ffn", "projection", "embedding", "convolution", "depthwise", "recurrent", "product", "other"]
KINDS: dict[Kind, str] = {
    "ffn": said("feed-forward layers"),
    "projection": said("other linear layers"),
    "embedding": said("embeddings"),
    "convolution": said("convolutions"),
    "depthwise": said("depthwise convolutions"),
    "recurrent": said("recurrent layers"),
    "product": said("products of two values"),
    "other": said("sums, averages and the rest"),
}
"""In the order in which they are quantized one after the other."""
WIDE = 2
"""A linear layer is feed-forward if its sizes differ by this factor."""
WORTH, KEPT = 0.1, 5
"""Advised to stay in float: layers with at least this share of all that is lost, and at most so many."""


@dataclass(frozen=True)
class LayerCost:
    """What one operator costs when it alone is quantized.

    Args:
        name, op, kind: of the operator.
        format: what it computes in, as planned.
        macs: multiply-accumulates of one sample.
        sqnr: of its output, in dB.
        estimate: of the divergence, to second order.
        divergence: of the network's outputs from those in float, a sample, measured; None: not measured.
    """

    name: str
    op: str
    kind: Kind
    format: str
    macs: int
    sqnr: float | None
    estimate: float
    divergence: float | None = None

    @property
    def cost(self) -> float:
        """What was measured, else what is estimated."""
        return self.estimate if self.divergence is None else self.divergence

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Stage:
    """One more kind of layers quantized.

    Args:
        kind: the one that came last.
        layers: how many operators are quantized now.
        divergence: of the outputs from those in float.
        metric: of the task, where it was evaluated.
    """

    kind: Kind
    layers: int
    divergence: float
    metric: float | None = None


def kind_of(node: fx.Node, network: Network) -> Kind:
    """The kind of an operator."""
    weight = weight_node(node)
    if node.target in EMBEDDINGS:
        return "embedding"
    if op_name(node) in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        return "recurrent"
    if weight is not None and node.target in LINEARS:
        small, large = sorted(network.tensor(weight).shape[:2])
        last = any(user.op == "output" for user in node.users)
        return "ffn" if large >= WIDE * small > WIDE and not last else "projection"
    if weight is not None:
        depthwise = node.target in CONVOLUTIONS and groups_of(node) == network.tensor(weight).shape[0] > 1
        return "depthwise" if depthwise else "convolution"
    return "product" if macs_of(node) else "other"


def cost_of(
    node: fx.Node, network: Network, format: str, noise: SignalNoise, estimate: float, batch: int
) -> LayerCost:
    """The record of an operator; ``batch`` is that of the network's example."""
    kind = kind_of(node, network)
    return LayerCost(title(node), op_name(node), kind, format, macs_of(node) // batch, noise.db, estimate)


def worth_keeping(layers: Sequence[LayerCost]) -> list[LayerCost]:
    """The layers that cost much more than others, worst first: a few, each with a tenth of all that is lost or more.

    >>> layers = [LayerCost(str(k), "linear", "ffn", "int8", 1, 30.0, cost) for k, cost in enumerate((5.0, 0.2, 0.1))]
    >>> [layer.name for layer in worth_keeping(layers)]
    ['0']
    """
    total = sum(layer.cost for layer in layers)
    worst = sorted(layers, key=lambda layer: -layer.cost)[:KEPT]
    found = [layer for layer in worst if layer.cost >= WORTH * total and layer.cost > 0]
    return found if len(found) < len(layers) else []
