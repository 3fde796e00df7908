"""Scale the channels of a space in the weights, biases and bounds around it."""

import torch
from torch import Tensor, fx

from tersor.network.network import (
    Network,
    add_tensor,
    aten,
    bias_node,
    groups_of,
    op_name,
    set_tensor,
    title,
    weight_node,
)
from tersor.network.rewrites.spaces import Space, cap_of


def rescale(network: Network, space: Space, scale: Tensor) -> None:
    """Divide the channels of an edited network's space by ``scale``, float64 [channels], all positive.

    Producers are divided, consumers multiplied, and clamps from 0 to a number become ``relu`` and ``minimum`` with a
    number per channel, so the network computes the same.
    """
    for layer in space.producers:
        for node in (weight_node(layer), bias_node(layer)):
            if node is not None:
                old = network.tensor(node)
                new = old.double() / scale.reshape(-1, *[1] * (old.ndim - 1))
                set_tensor(network, str(node.target), new.to(old.dtype))
    for layer in space.consumers:
        node = weight_node(layer)
        assert node is not None
        old = network.tensor(node)
        factor = by_weight(scale, layer, len(old))
        new = old.double() * factor.reshape(*factor.shape, *[1] * (old.ndim - 2))
        set_tensor(network, str(node.target), new.to(old.dtype))
    for node in space.values:
        if (cap := cap_of(node)) is not None:
            cap_channels(network, node, cap / scale, space.axis)
        elif op_name(node) == "minimum":
            bound = network.tensor(node.args[1])  # type: ignore[arg-type]
            along = scale.reshape([-1 if d == space.axis else 1 for d in range(bound.ndim)])
            set_tensor(network, str(node.args[1].target), (bound / along).to(bound.dtype))  # type: ignore[union-attr]


def by_weight(channels: Tensor, layer: fx.Node, outputs: int) -> Tensor:
    """Expand one number per input channel to [out, in/groups], the layout of the weight that reads them."""
    groups = groups_of(layer)
    return channels.reshape(groups, -1).repeat_interleave(outputs // groups, 0)


def cap_channels(network: Network, node: fx.Node, cap: Tensor, axis: int) -> None:
    """Replace a clamp by ``relu`` and ``minimum`` with one bound per channel, [channels]."""
    value = node.meta["val"]
    shape = [-1 if d == axis else 1 for d in range(value.ndim)]
    name = add_tensor(network, f"{title(node)}.cap", cap.to(value.dtype).reshape(shape))
    with network.graph.inserting_before(node):
        relu = network.graph.call_function(aten.relu.default, (node.args[0],))
        bound = network.graph.get_attr(name)
        capped = network.graph.call_function(aten.minimum.default, (relu, bound))
    bound.meta["val"] = network.tensor(name)
    relu.meta.update(node.meta, title=f"{title(node)}.relu")
    capped.meta.update(node.meta)
    node.replace_all_uses_with(capped)
    network.graph.erase_node(node)


def bounded(network: Network, node: fx.Node, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges per channel after the activation functions that are the only readers of ``node``, if any."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        cap = cap_of(node)
        if op_name(node) == "relu" or cap is not None:
            low, high = low.clamp(min=0), high.clamp(min=0, max=cap)
        elif op_name(node) == "minimum" and getattr(node.args[1], "op", "") == "get_attr":
            high = torch.minimum(high, network.tensor(node.args[1]).flatten().to(high.dtype))  # type: ignore[arg-type]
        else:
            break
    return low, high
