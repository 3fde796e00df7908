"""Graphs whose nodes call a module's own parameters and submodules: run, copied and pickled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from tersor.network.network import Network, aten, finish
from tersor.network.trainable.checkpointing import in_parts
from tersor.network.trainable.folding import Folded

TAPS = "tapped"
# What a node is remembered by; values of the trace are not, since fake tensors cannot be pickled.
_META = ("title", "path", "quantizer", "bits", "half", "float")


@dataclass(frozen=True)
class Write:
    """One tensor of the quantized network, and what of the trained module it is made from.

    Args:
        names: of the tensors: one; or codes, scale and zero point; or scale and zero point.
        source: the name of a parameter, or the layer that a BatchNorm is folded into; None: the quantizer alone.
        quantizer: the name of the submodule, or None.
        part: ``weight`` or ``bias`` of a folded layer.
        per_output: whether a stored scale is one of the original weight, which γ/σ multiplies.
    """

    names: tuple[str, ...]
    source: str | Folded | None
    quantizer: str | None = None
    part: str = "weight"
    per_output: bool = False


RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
# Arguments of operators that differ while training.
_PLACES: dict[Any, tuple[int, ...]] = {
    aten.dropout.default: (2,),
    **dict.fromkeys(RECURRENT, (5, 6)),
}


@dataclass(frozen=True, eq=False)
class Graphs:
    """The graphs of a trainable network; immutable, so that copies of the module share them.

    Args:
        train: with BatchNorm by the statistics of the batch.
        evaluate: the network as it is deployed, BatchNorm folded.
        latents: of every write, the float tensor that it is made from, and the factor of its scales.
        network: the quantized network, into which trained tensors are written.
        writes: what is written there.
        notes: what training leaves out, for the report.
        shapes: of what the operators return for the example, by title, in order.
        depth: of the modules whose values are computed again in the backward pass; 0: all values are kept.
    """

    train: fx.Graph
    evaluate: fx.Graph
    latents: fx.Graph
    network: Network
    writes: tuple[Write, ...]
    notes: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    depth: int = 0

    def function(self, graph: str, owner: nn.Module) -> Callable[..., Any]:
        """The code of ``train``, ``evaluate`` or ``latents``: a function of the owner and its inputs."""
        name = f"_{graph}_code"
        if name not in self.__dict__:
            if self.depth and graph != "latents":
                self.__dict__[name] = in_parts(getattr(self, graph), owner, self.depth, is_tap)
            else:
                self.__dict__[name] = type(fx.GraphModule(owner, getattr(self, graph))).forward
        return self.__dict__[name]

    @cached_property
    def frozen(self) -> fx.Graph:
        """``evaluate`` while training: dropout and recurrent layers are as in ``train``; ``evaluate`` itself without
        any."""
        trained = {n.name: n for n in self.train.nodes if n.target in _PLACES}
        graph, changed = copied(self.evaluate), False
        for node in graph.nodes:
            if node.name in trained:
                for place in _PLACES[node.target]:
                    node.update_arg(place, trained[node.name].args[place])
                    changed = True
        return graph if changed else self.evaluate

    @cached_property
    def names(self) -> frozenset[str]:
        """All parameters and buffers that are read, by dotted name."""
        graphs = (self.train, self.evaluate, self.latents)
        return frozenset(str(n.target) for g in graphs for n in g.nodes if n.op == "get_attr")

    def edited(self, edit: Callable[[fx.Graph], None]) -> "Graphs":
        """Copies of both graphs, changed by ``edit``."""
        train, evaluate = copied(self.train), copied(self.evaluate)
        for graph in (train, evaluate):
            edit(graph)
        return replace(self, train=train, evaluate=evaluate)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graphs":
        return self

    def __reduce__(self) -> Any:
        network = self.network
        tensors = dict(network.tensors())
        plain = {f.name: getattr(network, f.name) for f in fields(network) if f.name != "module"}
        graphs = tuple(_encoded(g) for g in (self.train, self.evaluate, self.latents, network.graph))
        return _restored, (graphs, tensors, plain, self.writes, self.notes, dict(self.shapes), self.depth)


def _restored(graphs: Any, tensors: Mapping[str, Tensor], plain: Mapping[str, Any], *others: Any) -> Graphs:
    train, evaluate, latents, quantized = map(_decoded, graphs)
    network = finish(Network(fx.GraphModule(dict(tensors), quantized), **plain))
    return Graphs(train, evaluate, latents, network, *others)


class Watching(fx.Interpreter):
    """Runs a graph node by node, and shows the names and values of inputs and operators.

    Args:
        owner: the module whose parameters and submodules the graph reads.
        see: called with the title of an operator, or the name of an input, and the value.
    """

    def __init__(self, owner: nn.Module, graph: fx.Graph, see: Callable[[str, Any], None]) -> None:
        super().__init__(owner, graph=graph)
        self.see = see

    def run_node(self, n: fx.Node) -> Any:
        """The value of the node."""
        value = super().run_node(n)
        if n.op != "get_attr":
            self.see(str(n.meta.get("title") or n.target), value)
        return value


def is_tap(node: fx.Node) -> bool:
    """Whether a node is an identity for forward hooks."""
    return node.op == "call_module" and str(node.target).startswith(f"{TAPS}.")


@dataclass(frozen=True)
class _Node:
    name: str


@dataclass(frozen=True)
class _Operator:
    name: str


def _encoded(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """The nodes as plain values."""
    found = []
    for node in graph.nodes:
        reference: Any = lambda n: _Node(n.name)  # noqa: E731
        args, kwargs = (map_arg(a, reference) for a in (node.args, node.kwargs))
        target = _Operator(str(node.target)) if isinstance(node.target, torch._ops.OpOverload) else node.target
        meta = {key: node.meta[key] for key in _META if key in node.meta}
        found.append((node.name, node.op, target, args, kwargs, meta))
    return found


def _decoded(items: list[tuple[Any, ...]]) -> fx.Graph:
    graph, nodes = fx.Graph(), dict[str, fx.Node]()

    def argument(value: Any) -> Any:
        return nodes[value.name] if isinstance(value, _Node) else value

    for name, op, target, args, kwargs, meta in items:
        if isinstance(target, _Operator):
            found: Any = torch.ops
            for part in target.name.split("."):
                found = getattr(found, part)
            target = found
        args, kwargs = (map_aggregate(value, argument) for value in (args, kwargs))
        nodes[name] = graph.create_node(op, target, args, kwargs, name)
        nodes[name].meta.update(meta)
    return graph


def copied(graph: fx.Graph) -> fx.Graph:
    """A copy without an owner, whose nodes may name modules that do not exist yet."""
    return _decoded(_encoded(graph))
