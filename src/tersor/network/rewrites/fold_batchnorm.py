"""Fold BatchNorm into the convolution or linear layer before it: W ← W·γ/σ, b ← (b − μ)·γ/σ + β."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx

from tersor.network.network import (
    TRANSPOSED,
    WEIGHTED,
    Network,
    add_tensor,
    argument,
    aten,
    bias_node,
    finish,
    groups_of,
    weight_node,
)
from tersor.network.rewrites.spaces import channel_axis
from tersor.network.trainable.folding import Folded, folded_bias, folded_weight


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold every BatchNorm that is the only reader of a layer.

    Computed in float64, so that the output changes by rounding only. Jacob et al., arXiv 1712.05877.

    >>> import torch
    >>> from tersor.network.capture import capture
    >>> block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    >>> folded = FoldBatchNorm()(capture(block, (torch.zeros(1, 3, 8, 8),)))
    >>> [n.name for n in folded.operators()]
    ['conv2d']
    """

    idempotent: ClassVar[bool] = True

    def __call__(self, network: Network, statistics: Any = None) -> Network:
        network = network.edit()
        folded: dict[tuple[Any, ...], tuple[str, str, Folded]] = {}
        for node in network.operators():
            if _is_fixed(node) and _can_fold(node):
                _fold(network, node, folded)
        return finish(network)


def _is_fixed(node: fx.Node) -> bool:
    """Whether a BatchNorm uses stored statistics, not those of each batch."""
    return node.target is aten.batch_norm.default and node.args[3] is not None and not argument(node, 5, "training")


def _can_fold(node: fx.Node) -> bool:
    layer = node.args[0]
    if not isinstance(layer, fx.Node) or layer.target not in WEIGHTED:
        return False
    weight = weight_node(layer)
    # A BatchNorm takes dimension 1 for the channels: behind a linear layer over tokens, that holds the tokens.
    if channel_axis(layer, layer) != 1 or not all(n is None or _stored(n) for n in node.args[1:5]):
        return False
    # A shared weight can be folded only if the same BatchNorm follows each of its layers.
    readers = _readers(layer.graph, str(weight.target)) if weight is not None else []
    return bool(readers) and all(_following_norm(reader) == _parameters(node) for reader in readers)


def _stored(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _following_norm(layer: fx.Node) -> tuple[Any, ...] | None:
    (user, *others) = layer.users or (layer,)
    single_reader = not others and user is not layer and _is_fixed(user) and layer.target in WEIGHTED
    return _parameters(user) if single_reader else None


def _parameters(norm: fx.Node) -> tuple[Any, ...]:
    """What identifies a BatchNorm: its layer's tensors, its own and its epsilon."""
    layer = norm.args[0]
    assert isinstance(layer, fx.Node)
    nodes = (weight_node(layer), bias_node(layer), *norm.args[1:5])
    return (*(n.target if isinstance(n, fx.Node) else n for n in nodes), argument(norm, 7, "eps", 1e-5))


def _readers(graph: fx.Graph, target: str) -> list[fx.Node]:
    return [u for n in graph.nodes if n.op == "get_attr" and n.target == target for u in n.users]


def _fold(network: Network, node: fx.Node, folded: dict[tuple[Any, ...], tuple[str, str, Folded]]) -> None:
    layer, key = node.args[0], _parameters(node)
    assert isinstance(layer, fx.Node)
    if key not in folded:
        record = _record(network, node, layer)
        weight, bias = record.results
        name = record.weight
        bias_name = name.removesuffix("weight") + "bias" if name.endswith("weight") else name + "_bias"
        folded[key] = add_tensor(network, name, weight), add_tensor(network, bias_name, bias), record
    *names, record = folded[key]
    with network.graph.inserting_before(layer):
        weight, bias = (network.graph.get_attr(name) for name in names)
    if source := weight_node(layer):
        weight.meta["val"] = source.meta.get("val")
    bias.meta["val"] = node.args[3].meta.get("val")  # type: ignore[union-attr]
    arguments = list(layer.args) + [None] * (3 - len(layer.args))
    arguments[1], arguments[2] = weight, bias
    layer.args = tuple(arguments)
    layer.kwargs = {k: v for k, v in layer.kwargs.items() if k != "bias"}
    layer.meta["folded"] = record
    node.replace_all_uses_with(layer)
    network.graph.erase_node(node)


def _record(network: Network, node: fx.Node, layer: fx.Node) -> Folded:
    """What is folded, with the layer's new weight and bias."""
    weight, bias = weight_node(layer), bias_node(layer)
    assert weight is not None
    gamma, beta, mean, var = (_value(network, node.args[k]) for k in range(1, 5))
    assert mean is not None and var is not None
    eps = float(argument(node, 7, "eps", 1e-5))
    groups = groups_of(layer) if layer.target in TRANSPOSED else None
    old_bias = None if bias is None else network.tensor(bias)
    results = (
        folded_weight(network.tensor(weight), gamma, var, eps, groups),
        folded_bias(old_bias, gamma, beta, mean, var, eps),
    )
    names = [n.target if isinstance(n, fx.Node) else None for n in (weight, bias, *node.args[1:5])]
    momentum = float(argument(node, 6, "momentum", 0.1))
    return Folded(*names, eps, momentum, groups, str(node.meta.get("path", "")), results)  # type: ignore[arg-type]


def _value(network: Network, node: Any) -> Tensor | None:
    return network.tensor(node) if isinstance(node, fx.Node) else None
