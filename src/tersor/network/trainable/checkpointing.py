"""Gradient checkpointing: a graph in parts, whose values are computed again in the backward pass."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from tersor.network.trainable.folding import batch_norm, cumulative_batch_norm

Code = Callable[..., Any]
Tapped = Callable[[fx.Node], bool]


@dataclass(frozen=True, eq=False)
class _Part:
    """Consecutive operators of one module.

    Args:
        inputs, outputs: the names of the values that it takes and gives; ``last``: of those that no later part takes.
        statistics: the buffers that its BatchNorms update.
        again: whether it is computed again, since its values are not kept.
    """

    code: Code
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...]
    statistics: tuple[str, ...]
    again: bool


def in_parts(graph: fx.Graph, owner: nn.Module, depth: int, tapped: Tapped) -> Code:
    """The code of a graph, a function of the owner and its inputs, that keeps only the values between its parts.

    Args:
        depth: parts are the submodules with that many names in their path, ``layer1.0`` for 2.
        tapped: of operators that are never computed again.
    """
    keys = _keys(graph, depth, tapped)
    groups = [[n for n, _ in group] for _, group in groupby(keys.items(), key=lambda item: item[1])]
    inputs = tuple(n.name for n in graph.nodes if n.op == "placeholder")
    (output,) = (n for n in graph.nodes if n.op == "output")
    parts, needed = list[_Part](), {n.name for n in output.all_input_nodes}
    for nodes in reversed(groups):
        part = _part(owner, nodes, needed, again=not any(map(tapped, nodes)))
        needed |= set(part.inputs)
        parts.insert(0, part)
    results = tuple((str(n.target), True) if n.op == "get_attr" else (n.name, False) for n in output.args[0])
    return partial(_run, parts, inputs, results)


def _run(
    parts: list[_Part], names: tuple[str, ...], results: tuple[tuple[str, bool], ...], owner: nn.Module, *inputs: Any
) -> tuple[Any, ...]:
    values = dict(zip(names, inputs, strict=True))
    for part in parts:
        given = [values[name] for name in part.inputs]
        for name in part.last:
            del values[name]
        values.update(zip(part.outputs, _compute(part, owner, given), strict=True))
    return tuple(_tensor(owner, name) if stored else values[name] for name, stored in results)


def _compute(part: _Part, owner: nn.Module, given: list[Any]) -> tuple[Any, ...]:
    # A compiler decides itself what it computes again.
    if not part.again or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return part.code(owner, *given)
    contexts = lambda: (nullcontext(), _Earlier(owner, part.statistics))  # noqa: E731
    return checkpoint(partial(part.code, owner), *given, use_reentrant=False, context_fn=contexts)


class _Earlier:
    """The statistics from before a part was computed, in which it is computed again: updates count once."""

    def __init__(self, owner: nn.Module, names: tuple[str, ...]) -> None:
        self.owner, self.values = owner, {name: _tensor(owner, name).clone() for name in names}
        self.now: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        for name, value in self.values.items():
            self.now[name] = _tensor(self.owner, name)
            self._put(name, value.clone())

    def __exit__(self, *_: object) -> None:
        for name, value in self.now.items():
            self._put(name, value)

    def _put(self, name: str, value: Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        self.owner.get_submodule(path)._buffers[leaf] = value


def _tensor(owner: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(owner.get_submodule(path), leaf)


def _keys(graph: fx.Graph, depth: int, tapped: Tapped) -> dict[fx.Node, str]:
    """The part of every operator: its module; what belongs to none, such as a quantizer, goes with what follows it."""
    nodes = [n for n in graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
    keys: dict[fx.Node, str] = {}
    following = ""
    for node in reversed(nodes):
        path = str(node.meta.get("path", ""))
        following = ".".join(path.split(".")[:depth]) if path else following
        keys[node] = f"tap {node.name}" if tapped(node) else following
    return {node: keys[node] for node in nodes}


def _part(owner: nn.Module, nodes: list[fx.Node], needed: set[str], *, again: bool) -> _Part:
    graph, copies, mine = fx.Graph(), dict[fx.Node, fx.Node](), set(nodes)
    read = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in mine)
    inputs = [n for n in read if n.op != "get_attr"]
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
    for node in (*(n for n in read if n.op == "get_attr"), *nodes):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    outputs = [n for n in nodes if n.name in needed]
    graph.output(tuple(copies[n] for n in outputs))
    last = tuple(n.name for n in inputs if n.name not in needed)
    norms = [n for n in nodes if n.target in (batch_norm, cumulative_batch_norm)]
    buffers = [a for n in norms for a in n.args[3 : 6 if n.target is cumulative_batch_norm else 5]]
    statistics = tuple(dict.fromkeys(str(b.target) for b in buffers if isinstance(b, fx.Node)))
    code = type(fx.GraphModule(owner, graph)).forward
    return _Part(code, tuple(n.name for n in inputs), tuple(n.name for n in outputs), last, statistics, again)
