"""SmoothQuant: outlying channels of a linear layer's input moved into its weight, where they do little harm."""

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
# Where the value must be multiplied in front of the layers, the error is to fall at least to this share.
WORTH = 0.5


@dataclass(frozen=True)
class Smooth:
    """Divide each input channel of linear layers by sⱼ and multiply the weight's column by it.

    Xiao et al., arXiv 2211.10438: sⱼ = max|Xⱼ|^α / max|Wⱼ|^(1−α). All linear layers that read one value share its
    s, which is found in the graph: no table of architectures. Where the value is a LayerNorm's that nobody else
    reads, s goes into its weight and bias and costs nothing; elsewhere the value is multiplied by 1/s in front of
    the layers, which an engine merges with the quantizer behind it.

    Args:
        alpha: how much of the range goes into the weight. More than 0.5 tames single outliers better, and costs
            weights more where there are none. None tries several, and none at all, for each value on rows of it that
            the statistics keep, and takes the one whose products in int8 come nearest; 0.5 where they keep none.

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
        """The smoothed network; ``statistics`` are of the layers' inputs, by graph name, channels last."""
        network = network.edit()
        for name, layers in smoothable(network).items():
            seen = (statistics or {}).get(name)
            source = next(n for n in network.graph.nodes if n.name == name)
            weights = [network.tensor(_weight(n)) for n in layers]
            if seen is None or seen.channels is None or len(seen.channels.max) != weights[0].shape[1]:
                continue
            free = _norm_parts(source, layers) is not None
            scale = self._scale(seen, weights, free)
            if scale is None:
                continue
            for node in dict.fromkeys(map(_weight, layers)):
                old = network.tensor(node)
                set_tensor(network, str(node.target), (old.double() * scale).to(old.dtype))
            if not _into_norm(network, source, layers, scale):
                _in_front(network, source, layers, scale)
        return finish(network)

    def _scale(self, seen: Statistics, weights: list[Tensor], free: bool) -> Tensor | None:
        """What to divide by; None where it helps too little for what it costs."""
        assert seen.channels is not None
        if self.alpha is not None or seen.sample is None:
            return smoothing(seen.channels, weights, 0.5 if self.alpha is None else self.alpha)
        rows, scales = seen.sample.stacked().float(), dict[float, Tensor | None]({0.0: None})
        error = {0.0: products_error(rows, weights, rows.new_ones(rows.shape[1]))}
        for alpha in STRENGTHS:
            scales[alpha] = scale = smoothing(seen.channels, weights, alpha)
            error[alpha] = products_error(rows, weights, scale.float())
        best = min(error, key=lambda a: error[a])
        return scales[best] if free or error[best] < WORTH * error[0.0] else None


def smoothing(inputs: Channels, weights: list[Tensor], alpha: float = 0.5) -> Tensor:
    """What each input channel is divided by: float64 ``[in]``; a channel without input or weight keeps its 1.

    ``weights`` ``[out, in]`` are those of all linear layers that read the value.
    """
    reach = inputs.magnitude.double()
    columns = torch.stack([w.abs().amax(0) for w in weights]).amax(0).double()
    alive = (reach > 0) & (columns > 0)
    scale = torch.where(alive, reach, 1.0) ** alpha / torch.where(alive, columns, 1.0) ** (1 - alpha)
    return torch.where(alive, scale.clamp(min=1e-5), 1.0)


def smoothable(network: Network) -> dict[str, list[fx.Node]]:
    """The linear layers by the value that they read, where their weights belong to them alone."""
    readers: dict[str, list[fx.Node]] = {}
    for node in network.operators():
        source = node.args[0] if node.target in LINEARS else None
        if isinstance(source, fx.Node) and weight_node(node) is not None:
            readers.setdefault(source.name, []).append(node)
    return {k: v for k, v in readers.items() if all(_alone(_weight(n), v) for n in v)}


def is_transformer(network: Network) -> bool:
    """Whether linear layers read what a LayerNorm or RMSNorm made: the graph says so, and no flag."""
    nodes = {n.name: n for n in network.graph.nodes}
    return any(op_name(nodes[name]) in NORMS for name in smoothable(network))


def _weight(layer: fx.Node) -> fx.Node:
    node = weight_node(layer)
    assert node is not None
    return node


def _alone(weight: fx.Node, layers: list[fx.Node]) -> bool:
    same = (n for n in weight.graph.nodes if n.op == "get_attr" and n.target == weight.target)
    return all(user in layers for n in same for user in n.users)


def _norm_parts(source: fx.Node, layers: list[fx.Node]) -> list[fx.Node] | None:
    """Weight and bias of the norm that made a value which nobody else reads; None where a scale cannot go there."""
    if op_name(source) not in NORMS or any(u not in layers for u in source.users):
        return None
    parts = [argument(source, 2, "weight"), argument(source, 3, "bias") if op_name(source) == "layer_norm" else None]
    if not all(p is None or (p.op == "get_attr" and len(p.users) == 1) for p in parts) or parts[0] is None:
        return None
    return [p for p in parts if p is not None]


def _into_norm(network: Network, source: fx.Node, layers: list[fx.Node], scale: Tensor) -> bool:
    """Whether ``scale`` could be put into the norm that made the value."""
    parts = _norm_parts(source, layers)
    for part in parts or ():
        old = network.tensor(part)
        set_tensor(network, str(part.target), (old.double() / scale).to(old.dtype))
    return parts is not None


def _in_front(network: Network, source: fx.Node, layers: list[fx.Node], scale: Tensor) -> None:
    name = add_tensor(network, f"{title(layers[0])}.smooth", (1 / scale).float())
    order = {n: k for k, n in enumerate(network.graph.nodes)}
    with network.graph.inserting_before(min(layers, key=order.__getitem__)):
        factor = network.graph.get_attr(name)
        smoothed = network.graph.call_function(aten.mul.Tensor, (source, factor))
    smoothed.meta.update(val=source.meta.get("val"), title=f"{title(layers[0])}.smooth")
    for layer in layers:
        layer.update_arg(0, smoothed)
