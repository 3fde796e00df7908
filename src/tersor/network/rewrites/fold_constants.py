"""Compute weights that depend only on parameters once, not at every call."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx
from torch.fx.node import map_arg

from tersor.network.network import WEIGHTED, Network, add_tensor, finish


@dataclass(frozen=True)
class FoldConstants:
    """Replace weights and biases independent of the inputs with their values: weight_norm, spectral_norm, ``w.abs()``.

    Only weights and biases of layers are folded; other constants may be large and cheap to compute.

    >>> import torch
    >>> from tersor.network.capture import capture
    >>> net = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 2)).eval()
    >>> [n.name for n in FoldConstants()(capture(net, (torch.zeros(1, 4),))).operators()]
    ['linear']
    """

    idempotent: ClassVar[bool] = True

    def __call__(self, network: Network, statistics: Any = None) -> Network:
        return _folded(network)[0]


def constant_tensors(network: Network) -> dict[str, str]:
    """The nodes of a network that FoldConstants replaces, by the names of the tensors that it makes of them."""
    return _folded(network)[1]


def _folded(network: Network) -> tuple[Network, dict[str, str]]:
    network = network.edit()
    values: dict[fx.Node, Any] = {}
    made: dict[str, str] = {}
    for node in network.operators():
        for position in (1, 2) if node.target in WEIGHTED else ():
            source = node.args[position] if len(node.args) > position else None
            if isinstance(source, fx.Node) and source.op == "call_function" and _is_constant(source):
                value = _value(network, source, values)
                if isinstance(value, Tensor):
                    made[_fold(network, node, position, value)] = source.name
    return finish(network), made


def _is_constant(node: fx.Node) -> bool:
    if node.op == "get_attr":
        return True
    if node.op != "call_function" or not _pure(node):
        return False
    return all(_is_constant(source) for source in node.all_input_nodes)


def _pure(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return not any(tag.name.startswith("nondeterministic") for tag in tags)


def _value(network: Network, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return network.tensor(node)
    if node not in values:
        look = lambda source: _value(network, source, values)  # noqa: E731
        values[node] = node.target(*map_arg(node.args, look), **map_arg(node.kwargs, look))  # type: ignore[operator]
    return values[node]


def _fold(network: Network, layer: fx.Node, position: int, value: Tensor) -> str:
    name = f"{layer.meta.get('path') or layer.name}.{'weight' if position == 1 else 'bias'}"
    source = layer.args[position]
    assert isinstance(source, fx.Node)
    with network.graph.inserting_before(source):
        folded = network.graph.get_attr(add_tensor(network, name, value.contiguous().clone()))
    folded.meta["val"] = source.meta.get("val")
    source.replace_all_uses_with(folded)
    return str(folded.target)
