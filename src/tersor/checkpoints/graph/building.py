"""Build a graph of allowed operators from a checked network.json, with its arguments decoded."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from tersor.checkpoints.graph.allowed import operator_of
from tersor.checkpoints.graph.schema import DTYPES, Graph, Node

_DEVICES = ("cpu", "cuda", "mps", "xpu")
_TORCH = {
    str(value).removeprefix("torch."): value
    for value in (torch.strided, torch.contiguous_format, torch.preserve_format, torch.channels_last,
                  torch.channels_last_3d)
}  # fmt: skip
_FLOATS = ("nan", "inf", "-inf")


def build(graph: Graph) -> fx.Graph:
    """The graph, each node with its operator.

    Raises:
        ValueError: an operator is not allowed, or an argument is of an unknown kind.
    """
    made, nodes = fx.Graph(), dict[str, fx.Node]()
    for item in graph.nodes:
        if item.name in nodes:
            raise ValueError(f"two nodes have the name {item.name}")
        node = _create(made, item, nodes, graph)
        node.meta.update(item.meta.model_dump(exclude_none=True))
        nodes[item.name] = node
    if not graph.nodes or graph.nodes[-1].op != "output" or [n.op for n in graph.nodes].count("output") != 1:
        raise ValueError("the last node is not the only output")
    return made


def _create(made: fx.Graph, item: Node, nodes: dict[str, fx.Node], graph: Graph) -> fx.Node:
    args = tuple(_decode(value, nodes) for value in item.args)
    if item.op == "output":
        return _output(made, args, graph)
    target = item.target or ""
    if item.op == "call_function":
        kwargs = _decode(item.kwargs, nodes) if set(item.kwargs) == {"dict"} else _mapping(item.kwargs, nodes)
        if not all(isinstance(key, str) and key.isidentifier() for key in kwargs):
            raise ValueError(f"the arguments of {item.name} have names that are none")
        return made.create_node(item.op, operator_of(target), args, kwargs, item.name)
    if args or item.kwargs:
        raise ValueError(f"{item.name} takes no arguments")
    if item.op == "get_attr" and target not in graph.tensors:
        raise ValueError(f"the node {item.name} reads {target!r:.200}, which is no tensor of the file")
    if item.op == "placeholder" and not (target.isidentifier() and target.isascii()):
        raise ValueError(f"invalid name {target!r:.200}")
    return made.create_node(item.op, target, (), {}, item.name)


def _output(made: fx.Graph, args: tuple[Any, ...], graph: Graph) -> fx.Node:
    results = args[0] if args else None
    if not isinstance(results, list) or not results or not all(isinstance(r, fx.Node) for r in results):
        raise ValueError("the output is no list of nodes")
    return made.output(tuple(results))


def _mapping(values: Mapping[str, Any], nodes: Mapping[str, fx.Node]) -> dict[str, Any]:
    return {key: _decode(value, nodes) for key, value in values.items()}


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    if not value:
        return {}
    if len(value) > 1:
        raise ValueError(f"an argument has the unexpected keys {list(value)[:5]}")
    (kind, inner), *_ = value.items()
    if kind == "dict" and isinstance(inner, dict):
        return _mapping(inner, nodes)
    table = _TABLES.get(kind) if kind != "node" else nodes
    if table is None or not isinstance(inner, str):
        raise ValueError(f"an argument has the unknown kind {kind!r:.200}")
    if inner not in table:
        raise ValueError(f"an argument has the unknown {kind} {inner!r:.200}")
    return table[inner]


_TABLES: dict[str, Mapping[str, Any]] = {
    "dtype": DTYPES,
    "device": {name: torch.device(name) for name in _DEVICES},
    "torch": _TORCH,
    "float": {text: float(text) for text in _FLOATS},
}


def arguments_of(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names in the operator's schema; ValueError for an unknown one."""
    names = [argument.name for argument in target._schema.arguments]
    if len(args) > len(names) or not set(kwargs) <= set(names[len(args) :]):
        raise ValueError(f"{target} takes {', '.join(names)}")
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def is_number(value: Any) -> bool:
    """Whether Python's arithmetic accepts it: a number, or a tensor."""
    return isinstance(value, int | float | Tensor) and not (isinstance(value, int) and abs(value) >= 1 << 63)
