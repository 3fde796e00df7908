"""Move activation functions from after a concatenation to before it, where they merge into the layers."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from tersor.network.network import Network, finish, free_title, op_name, title

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
    """Rewrite act(cat(a, b)) as cat(act(a), act(b)), for example in SqueezeNet's fire modules."""

    idempotent: ClassVar[bool] = True

    def __call__(self, network: Network, statistics: Any = None) -> Network:
        network = network.edit()
        waiting = network.operators()
        while waiting:
            node = waiting.pop(0)
            source = node.args[0] if node.args else None
            if op_name(node) in _ELEMENTWISE and isinstance(source, fx.Node) and _only_read_by(source, node):
                # The operands may themselves be concatenations.
                waiting += _hoist(network, node, source)
        return finish(network)


def _only_read_by(source: fx.Node, node: fx.Node) -> bool:
    plain = all(not isinstance(a, fx.Node) for a in node.args[1:])
    return op_name(source) in ("cat", "concat") and len(source.users) == 1 and plain


def _hoist(network: Network, node: fx.Node, source: fx.Node) -> list[fx.Node]:
    """Move ``node`` before the concatenation; returns the activation functions that replace it."""
    parts: list[fx.Node] = []
    for k, part in enumerate(source.args[0]):  # type: ignore[arg-type]
        with network.graph.inserting_before(source):
            moved = network.graph.create_node("call_function", node.target, (part, *node.args[1:]), dict(node.kwargs))
        name = title(node) if k == 0 else free_title(network, title(node))
        moved.meta.update(val=part.meta.get("val"), title=name)  # type: ignore[union-attr]
        parts.append(moved)
    source.update_arg(0, parts)
    node.replace_all_uses_with(source)
    network.graph.erase_node(node)
    return parts
