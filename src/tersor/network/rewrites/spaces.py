"""Channel spaces: the values of a graph that must be scaled together to keep the function.

A convolution may divide its output channel i by sᵢ if its readers multiply their input channel i by sᵢ, and all
operators between commute with a positive factor. A residual add ties its operands together, so a space may have
several producers and consumers.
"""

from dataclasses import dataclass
from typing import Any

from torch import fx

from tersor.network.network import (
    CONVOLUTIONS,
    LINEARS,
    Network,
    argument,
    aten,
    bias_node,
    op_name,
    weight_node,
)

# f(s·x) = s·f(x) for s > 0, value by value.
_ELEMENTWISE = {"relu", "leaky_relu", "prelu", "dropout", "feature_dropout"}
# The same over windows of the spatial dimensions; the last character but one is their number.
_POOLS = {f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)}
_RESHAPES = {"flatten", "view", "reshape", "squeeze"}
_CLAMPS = {"relu6", "hardtanh", "clamp"}
_OTHERS = {"pad", "constant_pad_nd", "mean", "minimum"}


@dataclass(frozen=True)
class Space:
    """Values that share their channels.

    Args:
        channels: the number of channels.
        axis: the channel dimension of the values.
        producers: layers that output the channels.
        consumers: layers that read the channels.
        values: all nodes from the producers to the inputs of the consumers.
    """

    channels: int
    axis: int
    producers: tuple[fx.Node, ...]
    consumers: tuple[fx.Node, ...]
    values: tuple[fx.Node, ...]


def spaces(network: Network) -> list[Space]:
    """The channel spaces that may be scaled, in graph order."""
    parent = {node: node for node in network.graph.nodes}

    def root(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for node in network.graph.nodes:
        for source in _tied(node):
            parent[root(node)] = root(source)
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in network.graph.nodes:
        members.setdefault(root(node), []).append(node)
    found = (_space(values) for values in members.values())
    return [space for space in found if space is not None]


def cap_of(node: fx.Node) -> float | None:
    """The upper bound of a ReLU6 or another clamp from 0 to a number, or None for any other node."""
    name = op_name(node)
    if name == "relu6":
        return 6.0
    if name not in ("clamp", "hardtanh"):
        return None
    defaults = (-1.0, 1.0) if name == "hardtanh" else (None, None)
    low, high = (argument(node, k, "", d) for k, d in zip((1, 2), defaults, strict=True))
    return float(high) if low == 0 and isinstance(high, int | float) and high > 0 else None


def _space(values: list[fx.Node]) -> Space | None:
    """The space of these tied values, or None if one of them or of their readers does not allow scaling."""
    producers = tuple(n for n in values if is_layer(n))
    # A layer whose output is added to its own input both reads and writes the space.
    readers = dict.fromkeys((user, n) for n in values for user in n.users if is_layer(user) or user not in values)
    readers = [(user, n) for user, n in readers if op_name(user) != "sym_size"]
    if not producers or not readers or not all(is_layer(u) and u.args[0] is n for u, n in readers):
        return None
    axes = {channel_axis(n, n) for n in producers} | {channel_axis(user, n) for user, n in readers}
    axis = axes.pop()
    counts = {_size(n, axis) for n in values}
    if axes or axis is None or len(counts) != 1 or not all(is_layer(n) or _commutes(n, axis) for n in values):
        return None
    channels = counts.pop()
    consumers = tuple(dict.fromkeys(user for user, _ in readers))
    return None if channels is None else Space(channels, axis, producers, consumers, tuple(values))


def is_layer(node: fx.Node) -> bool:
    """Whether the node is a convolution or linear layer that does not share its weight and bias."""
    if node.target not in CONVOLUTIONS + LINEARS:
        return False
    weight, bias = weight_node(node), bias_node(node)
    if weight is None or (bias is None and argument(node, 2, "bias") is not None):
        return False
    return all(part is None or _reads(part) == 1 for part in (weight, bias))


def _reads(attribute: fx.Node) -> int:
    same = (n for n in attribute.graph.nodes if n.op == "get_attr" and n.target == attribute.target)
    return sum(len(n.users) for n in same)


def _tied(node: fx.Node) -> list[fx.Node]:
    """The inputs that must be scaled together with this node's output."""
    name = op_name(node)
    if node.op != "call_function" or is_layer(node) or not node.all_input_nodes:
        return []
    if name == "add":
        return [n for n in node.args[:2] if isinstance(n, fx.Node)]
    first = node.args[0]
    through = name in _ELEMENTWISE | _POOLS | _RESHAPES | _CLAMPS | {
        "pad",
        "constant_pad_nd",
        "mean",
        "minimum",
    }
    return [first] if through and isinstance(first, fx.Node) else []


def _commutes(node: fx.Node, axis: int) -> bool:
    """Whether a node other than a layer commutes with positive factors along ``axis``."""
    name = op_name(node)
    if name in _ELEMENTWISE or cap_of(node) is not None:
        return True
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or _shape(source) is None:
        return False
    rank = len(_shape(source) or ())
    if name == "add":
        other = node.args[1]
        return isinstance(other, fx.Node) and len(_shape(other) or ()) == rank and not node.kwargs
    if name == "minimum":
        bound = node.args[1]
        return (
            isinstance(bound, fx.Node)
            and bound.op == "get_attr"
            and _reads(bound) == 1
            and (_shape(bound) == tuple(_size(node, axis) if d == axis else 1 for d in range(rank)))
        )
    if name in _POOLS:
        return axis == 1 and rank == 2 + int(name[-2])
    if name in _RESHAPES:
        spatial = [_size(n, k) for n in (source, node) for k in range(2, len(_shape(n) or ()))]
        return axis == 1 and all(size == 1 for size in spatial)
    if name == "mean":
        dims = argument(node, 1, "dim")
        return dims is not None and all(d % rank > axis for d in dims)
    if name in ("pad", "constant_pad_nd"):
        return _pads_zeros(node) and len(node.args[1]) // 2 < rank - axis  # type: ignore[arg-type]
    return False


def _pads_zeros(node: fx.Node) -> bool:
    if node.target is aten.constant_pad_nd.default:
        return not argument(node, 2, "value", 0)
    return argument(node, 2, "mode", "constant") != "constant" or not argument(node, 3, "value", 0)


def channel_axis(layer: fx.Node, value: fx.Node) -> int | None:
    """The channel dimension of ``value``, which a layer reads or writes."""
    rank = len(_shape(value) or ())
    if layer.target in LINEARS:
        return rank - 1
    return 1 if rank == 2 + int(op_name(layer)[-2]) else None


def _size(node: fx.Node, axis: int | None) -> int | None:
    shape = _shape(node)
    size: Any = shape[axis] if shape is not None and axis is not None and axis < len(shape) else None
    return size if isinstance(size, int) else None


def _shape(node: fx.Node) -> tuple[Any, ...] | None:
    shape = getattr(node.meta.get("val"), "shape", None)
    return None if shape is None else tuple(shape)
