"""An activation function behind a concatenation moves before it, where it merges into the layers."""

from dataclasses import dataclass
from typing import Any

from torch import fx

from tersor.network.network import Network, finish, op_name, title

# Functions of one value at a time: f(cat(a, b)) = cat(f(a), f(b)).
_ELEMENTWISE = {
    "relu",
    "relu6",
    "hardtanh",
    "clamp",
    "clamp_min",
    "leaky_relu",
    "hardswish",
    "silu",
    "sigmoid",
    "tanh",
}


@dataclass(frozen=True)
class HoistActivations:
    """Rewrite act(cat(a, b)) as cat(act(a), act(b)), as SqueezeNet's fire modules need it."""

    def __call__(self, network: Network, statistics: Any = None) -> Network:
        network = network.edit()
        for node in network.operators():
            source = node.args[0] if node.args else None
            if op_name(node) in _ELEMENTWISE and isinstance(source, fx.Node) and _only_read_by(source, node):
                _hoist(network, node, source)
        return finish(network)


def _only_read_by(source: fx.Node, node: fx.Node) -> bool:
    plain = all(not isinstance(a, fx.Node) for a in node.args[1:])
    return op_name(source) in ("cat", "concat") and len(source.users) == 1 and plain


def _hoist(network: Network, node: fx.Node, source: fx.Node) -> None:
    parts = []
    for k, part in enumerate(source.args[0]):  # type: ignore[arg-type]
        with network.graph.inserting_before(source):
            moved = network.graph.create_node("call_function", node.target, (part, *node.args[1:]), dict(node.kwargs))
        moved.meta.update(val=part.meta.get("val"), title=title(node) if k == 0 else f"{title(node)}_{k + 1}")  # type: ignore[union-attr]
        parts.append(moved)
    source.update_arg(0, parts)
    node.replace_all_uses_with(source)
    network.graph.erase_node(node)
