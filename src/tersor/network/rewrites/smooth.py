"""SmoothQuant: move outlier channels of a linear layer's input into its weight, where they do little harm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from tersor.network.network import (
    LINEARS,
    Network,
    add_tensor,
    argument,
    aten,
    finish,
    op_name,
    set_tensor,
    title,
    weight_node,
)
from tersor.network.rewrites.smooth_alpha import STRENGTHS, products_error
from tersor.observers import Channels, Statistics

NORMS = frozenset({"layer_norm", "rms_norm"})
# If smoothing needs a multiplication before the layers, the error must fall at least to this share.
REQUIRED_ERROR_SHARE = 0.5


@dataclass(frozen=True)
class Smooth:
    """Divide each input channel of linear layers by sⱼ and multiply the weight's column by it.

    Xiao et al., arXiv 2211.10438: sⱼ = max|Xⱼ|^α / max|Wⱼ|^(1−α). All linear layers that read one value share its
    s; they are found in the graph, without a table of architectures. If the value is a LayerNorm's and has no other
    readers, s is folded into the norm's weight and bias at no cost; otherwise the value is multiplied by 1/s before the
    layers, which an engine merges with the quantizer that follows.

    Args:
        alpha: how much of the range moves into the weight. More than 0.5 suppresses single outliers better, but costs
            weights more if there are none. None tries several values, and no smoothing, on the rows sampled in the
            statistics, and chooses the one with the most accurate int8 products; 0.5 without sampled rows.

    >>> from tersor.network.capture import capture
    >>> from tersor.observers import observe
    >>> layer = torch.nn.Linear(2, 1, bias=False).eval()
    >>> layer.weight.data = torch.tensor([[1.0, 1.0]])
    >>> network, x = capture(layer, (torch.ones(1, 2),)), torch.tensor([[100.0, 1.0]])
    >>> name = next(iter(smoothable(network)))
    >>> smooth = Smooth(alpha=0.5)(network, {name: observe(None, x, channel_axis=-1)})
    >>> smooth.tensor("weight").tolist(), smooth(x).item()
    ([[10.0, 1.0]], 101.0)
    """

    alpha: float | None = 0.5
    idempotent: ClassVar[bool] = False

    def __call__(self, network: Network, statistics: Mapping[str, Statistics] | None = None) -> Network:
        """The smoothed network; ``statistics`` are those of the layers' inputs, by graph name, channels last."""
        network = network.edit()
        for name, layers in smoothable(network).items():
            input_statistics = (statistics or {}).get(name)
            source = next(n for n in network.graph.nodes if n.name == name)
            weights = [network.tensor(_weight(n)) for n in layers]
            channels = input_statistics.channels if input_statistics is not None else None
            if input_statistics is None or channels is None or len(channels.max) != weights[0].shape[1]:
                continue
            free = _norm_parts(source, layers) is not None
            scale = self._scale(input_statistics, weights, free)
            if scale is None:
                continue
            for node in dict.fromkeys(map(_weight, layers)):
                old = network.tensor(node)
                set_tensor(network, str(node.target), (old.double() * scale).to(old.dtype))
            if not _fold_into_norm(network, source, layers, scale):
                _multiply_before(network, source, layers, scale)
        return finish(network)

    def _scale(self, inputs: Statistics, weights: list[Tensor], free: bool) -> Tensor | None:
        """The divisors, or None if smoothing gains too little for its cost."""
        assert inputs.channels is not None
        if self.alpha is not None or inputs.sample is None:
            return smoothing(inputs.channels, weights, 0.5 if self.alpha is None else self.alpha)
        rows, scales = inputs.sample.stacked().float(), dict[float, Tensor | None]({0.0: None})
        error = {0.0: products_error(rows, weights, rows.new_ones(rows.shape[1]))}
        for alpha in STRENGTHS:
            scales[alpha] = scale = smoothing(inputs.channels, weights, alpha)
            error[alpha] = products_error(rows, weights, scale.float())
        best = min(error, key=lambda a: error[a])
        return scales[best] if free or error[best] < REQUIRED_ERROR_SHARE * error[0.0] else None


def smoothing(inputs: Channels, weights: list[Tensor], alpha: float = 0.5) -> Tensor:
    """The divisor of each input channel, float64 ``[in]``; 1 for a channel whose inputs or weights are all zero.

    ``weights``, ``[out, in]``, are those of all linear layers that read the value.
    """
    peak = inputs.magnitude.double()
    columns = torch.stack([w.abs().amax(0) for w in weights]).amax(0).double()
    alive = (peak > 0) & (columns > 0)
    scale = torch.where(alive, peak, 1.0) ** alpha / torch.where(alive, columns, 1.0) ** (1 - alpha)
    return torch.where(alive, scale.clamp(min=1e-5), 1.0)


def smoothable(network: Network) -> dict[str, list[fx.Node]]:
    """The linear layers by the value that they read, if no other layer shares their weights."""
    readers: dict[str, list[fx.Node]] = {}
    for node in network.operators():
        source = node.args[0] if node.target in LINEARS else None
        if isinstance(source, fx.Node) and weight_node(node) is not None:
            readers.setdefault(source.name, []).append(node)
    return {k: v for k, v in readers.items() if all(_unshared(_weight(n), v) for n in v)}


def is_transformer(network: Network) -> bool:
    """Whether a linear layer reads a LayerNorm or RMSNorm, as the graph shows."""
    nodes = {n.name: n for n in network.graph.nodes}
    return any(op_name(nodes[name]) in NORMS for name in smoothable(network))


def _weight(layer: fx.Node) -> fx.Node:
    node = weight_node(layer)
    assert node is not None
    return node


def _unshared(weight: fx.Node, layers: list[fx.Node]) -> bool:
    same = (n for n in weight.graph.nodes if n.op == "get_attr" and n.target == weight.target)
    return all(user in layers for n in same for user in n.users)


def _norm_parts(source: fx.Node, layers: list[fx.Node]) -> list[fx.Node] | None:
    """Weight and bias of the norm that produces a value with no other readers, or None if it cannot be scaled."""
    if op_name(source) not in NORMS or any(u not in layers for u in source.users):
        return None
    parts = [argument(source, 2, "weight"), argument(source, 3, "bias") if op_name(source) == "layer_norm" else None]
    if not all(p is None or (p.op == "get_attr" and len(p.users) == 1) for p in parts) or parts[0] is None:
        return None
    return [p for p in parts if p is not None]


def _fold_into_norm(network: Network, source: fx.Node, layers: list[fx.Node], scale: Tensor) -> bool:
    """Fold ``scale`` into the norm that produces the value; returns whether that is possible."""
    parts = _norm_parts(source, layers)
    for part in parts or ():
        old = network.tensor(part)
        set_tensor(network, str(part.target), (old.double() / scale).to(old.dtype))
    return parts is not None


def _multiply_before(network: Network, source: fx.Node, layers: list[fx.Node], scale: Tensor) -> None:
    name = add_tensor(network, f"{title(layers[0])}.smooth", (1 / scale).float())
    order = {n: k for k, n in enumerate(network.graph.nodes)}
    with network.graph.inserting_before(min(layers, key=order.__getitem__)):
        factor = network.graph.get_attr(name)
        smoothed = network.graph.call_function(aten.mul.Tensor, (source, factor))
    smoothed.meta.update(val=source.meta.get("val"), title=f"{title(layers[0])}.smooth")
    for layer in layers:
        layer.update_arg(0, smoothed)
