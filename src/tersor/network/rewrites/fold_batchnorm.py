"""Fold BatchNorm into the convolution or linear layer before it: W ← W·γ/σ, b ← (b − μ)·γ/σ + β."""

from dataclasses import dataclass
from typing import Any

import torch
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
    title,
    weight_node,
)


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold every BatchNorm whose input is a layer that nobody else reads.

    The arithmetic is done in float64, so that the output changes by rounding only. Jacob et al., arXiv 1712.05877.

    >>> from tersor.network.capture import capture
    >>> block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    >>> folded = FoldBatchNorm()(capture(block, (torch.zeros(1, 3, 8, 8),)))
    >>> [n.name for n in folded.operators()]
    ['conv2d']
    """

    def __call__(self, network: Network, statistics: Any = None) -> Network:
        network = network.edit()
        for node in network.operators():
            if node.target is aten.batch_norm.default and _foldable(node):
                _fold(network, node)
        return finish(network)


def _foldable(node: fx.Node) -> bool:
    layer = node.args[0]
    if not isinstance(layer, fx.Node) or layer.target not in WEIGHTED or len(layer.users) != 1:
        return False
    weight = weight_node(layer)
    # A weight that several layers share cannot take the scale of one of them.
    return weight is not None and len(_readers(layer.graph, str(weight.target))) == 1


def _readers(graph: fx.Graph, target: str) -> list[fx.Node]:
    return [u for n in graph.nodes if n.op == "get_attr" and n.target == target for u in n.users]


def _fold(network: Network, node: fx.Node) -> None:
    layer = node.args[0]
    assert isinstance(layer, fx.Node)
    weight = weight_node(layer)
    bias = bias_node(layer)
    assert weight is not None
    gamma, beta, mean, var = (_value(network, node.args[k]) for k in range(1, 5))
    assert mean is not None and var is not None
    eps = float(argument(node, 7, "eps", 1e-5))
    factor = (1.0 if gamma is None else gamma.double()) / torch.sqrt(var.double() + eps)
    old = network.tensor(weight)
    old_bias = 0.0 if bias is None else network.tensor(bias).double()
    new_bias = (old_bias - mean.double()) * factor + (0.0 if beta is None else beta.double())
    new = _scale_outputs(old.double(), factor, layer)
    name = str(weight.target)
    with network.graph.inserting_before(layer):
        weight_now = network.graph.get_attr(add_tensor(network, name, new.to(old.dtype)))
        bias_name = name.removesuffix("weight") + "bias" if name.endswith("weight") else name + "_bias"
        bias_now = network.graph.get_attr(add_tensor(network, bias_name, new_bias.to(old.dtype)))
    arguments = list(layer.args) + [None] * (3 - len(layer.args))
    arguments[1], arguments[2] = weight_now, bias_now
    layer.args = tuple(arguments)
    layer.kwargs = {k: v for k, v in layer.kwargs.items() if k != "bias"}
    layer.meta.setdefault("absorbed", []).append(title(node))
    node.replace_all_uses_with(layer)
    network.graph.erase_node(node)


def _scale_outputs(weight: Tensor, factor: Tensor, layer: fx.Node) -> Tensor:
    if layer.target not in TRANSPOSED:
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    groups = groups_of(layer)
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return (split * factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def _value(network: Network, node: Any) -> Tensor | None:
    return network.tensor(node) if isinstance(node, fx.Node) else None
