"""Decompose activation functions into simpler operators, which some engines compute in integers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import fx

from tersor.network.network import Network, aten, finish, op_name, title


@dataclass(frozen=True)
class Decompose:
    """Replace SiLU by x·sigmoid(x), if the engine's policy requires it.

    Args:
        names: the operator types to decompose; by default all supported ones.
    """

    names: frozenset[str] = field(default_factory=lambda: frozenset(RULES))
    idempotent: ClassVar[bool] = True

    def __call__(self, network: Network, statistics: Any = None) -> Network:
        network = network.edit()
        for node in network.operators():
            if op_name(node) in self.names and op_name(node) in RULES:
                with network.graph.inserting_before(node):
                    result = RULES[op_name(node)](network.graph, node)
                for new in network.graph.nodes:
                    if new.op == "call_function" and "title" not in new.meta:
                        new.meta.update(val=node.meta.get("val"), title=f"{title(node)}.{op_name(new)}")
                node.replace_all_uses_with(result)
                network.graph.erase_node(node)
        return finish(network)


def _silu(graph: fx.Graph, node: fx.Node) -> fx.Node:
    x = node.args[0]
    return graph.call_function(aten.mul.Tensor, (x, graph.call_function(aten.sigmoid.default, (x,))))


RULES: dict[str, Callable[[fx.Graph, fx.Node], fx.Node]] = {"silu": _silu}
