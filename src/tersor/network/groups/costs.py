"""What a network costs: multiply-accumulates by operator, and what an atom has of them."""

from collections.abc import Callable, Collection
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from tersor.network.groups.cut import Kept
from tersor.network.groups.flow import number, shape_of
from tersor.network.groups.found import Group, Site
from tersor.network.network import CONVOLUTIONS, TRANSPOSED, Network, argument, op_name

_PRODUCTS = ("matmul", "mm", "bmm", "linear", "addmm", "baddbmm")


Shape = Callable[[fx.Node], list[int]]


def macs_of(node: fx.Node, shape: Shape = shape_of) -> int:
    """Multiply-accumulates of the example's batch; 0 for what is no product."""
    name, value = op_name(node), node.meta.get("val")
    if node.op != "call_function":
        return 0
    if node.target in (*CONVOLUTIONS, *TRANSPOSED):
        weight = shape(node.args[1])  # type: ignore[arg-type]
        source = node if node.target in CONVOLUTIONS else node.args[0]
        own = shape(source)  # type: ignore[arg-type]
        return own[0] * prod(own[-(len(weight) - 2) :]) * prod(weight)
    if name in _PRODUCTS and isinstance(value, Tensor):
        first = node.args[1 if name in ("addmm", "baddbmm") else 0]
        return prod(shape(node)) * shape(first)[-1]  # type: ignore[arg-type]
    if name == "scaled_dot_product_attention":
        q, k, v = (shape(argument(node, i, n)) for i, n in enumerate(("query", "key", "value")))
        return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])
    if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        weights = [shape(p) for p in argument(node, 2, "params")]
        x = shape(node.args[0])  # type: ignore[arg-type]
        return x[0] * x[1] * sum(prod(w) for w in weights if len(w) == 2)
    if name in ("grouped_mm_fallback", "_grouped_mm"):
        return prod(shape(node)) * shape(node.args[0])[-1]  # type: ignore[arg-type]
    return 0


def macs(network: Network, shape: Shape = shape_of, names: Collection[str] | None = None) -> int:
    """Multiply-accumulates of one sample, of the operators with these names, by default of all.

    >>> import torch
    >>> from tersor.network.capture import capture
    >>> macs(capture(torch.nn.Conv2d(3, 8, 3, padding=1).eval(), (torch.zeros(1, 3, 4, 4),)))
    3456
    """
    nodes = (node for node in network.graph.nodes if names is None or node.name in names)
    return sum(macs_of(node, shape) for node in nodes) // _batch(network)


def macs_left(kept: Kept, names: Collection[str] | None = None) -> int:
    """Those of the network that would be left, without making it; of the operators with these names, by default all."""
    values, network = kept.structure.flow.values, kept.structure.network
    return macs(network, lambda node: [kept.count(cells) for cells in values[node]], names)


def _batch(network: Network) -> int:
    first = network.example[0] if network.example else None
    return max(1, number(first.shape[0])) if first is not None and first.ndim else 1


def parameters(network: Network) -> int:
    """The number of values in all floating-point tensors."""
    return sum(t.numel() for _, t in network.tensors() if t.is_floating_point())


def macs_of_tensors(network: Network) -> dict[str, int]:
    """For each tensor the multiply-accumulates of one sample of the operators that read it as their weight."""
    found: dict[str, int] = {}
    for node in network.operators():
        cost = macs_of(node) // _batch(network)
        if not cost:
            continue
        read = [n for n in node.all_input_nodes if n.op == "get_attr" and n.meta["val"].ndim > 1]
        sizes = [prod(shape_of(n)) for n in read]
        for source, size in zip(read, sizes, strict=True):
            name = str(source.target)
            found[name] = found.get(name, 0) + cost * size // max(1, sum(sizes))
    return found


def sizes_of_tensors(network: Network) -> dict[str, int]:
    """The number of values in each floating-point tensor."""
    return {name: t.numel() for name, t in network.tensors() if t.is_floating_point()}


def share_of_atoms(group: Group, cost: dict[str, int], network: Network) -> NDArray[np.float64]:
    """What each atom takes of the costs of tensors, while all others stay: [atoms]."""
    sites: dict[Site, NDArray[np.int64]] = group.sites
    return sum(
        (np.full(len(group), cost.get(name, 0) * found.shape[1] / network.tensor(name).shape[dim])
         for (name, dim), found in sites.items()),
        start=np.zeros(len(group)),
    )  # fmt: skip
