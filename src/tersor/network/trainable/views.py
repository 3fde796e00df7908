"""The graphs of a trainable module: the quantized network's, in terms of the original tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from tersor.network.network import aten, title
from tersor.network.trainable.folding import (
    Folded,
    batch_norm,
    cumulative_batch_norm,
    folded_bias,
    folded_weight,
    oriented,
    scale_factor,
    unfolded,
)
from tersor.network.trainable.graphs import RECURRENT, Write, copied
from tersor.network.trainable.halves import stored_as
from tersor.network.trainable.module import DEVICE
from tersor.network.trainable.sources import COUNT, Sources


@dataclass
class Found:
    """What is found on the way.

    Args:
        writes: what is written back, by the names of the tensors.
        bases: the write of each node that stands for a weight, a bias or a quantizer, by the node's name.
        modules: the quantizers by dotted name.
        read: the tensors that the graphs read, by their names in the networks.
    """

    sources: Sources
    dropout: bool
    writes: dict[tuple[str, ...], Write] = field(default_factory=dict)
    bases: dict[str, Write] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The parameters and buffers of the module."""
        return dict(self.sources.values(self.read))


def view(found: Found, *, training: bool) -> fx.Graph:
    """The network as it is deployed; while training, with BatchNorm by the statistics of the batch."""
    graph = copied(found.sources.quantized.graph)
    made = _Made(found, graph, training)
    for node in list(graph.nodes):
        write = found.bases.get(node.name)
        if write is None:
            if training:
                _trained(found, graph, node)
        elif write.source is None:
            with graph.inserting_before(node):
                _replace(node, graph.call_module(str(write.quantizer), (node.args[0],)))
        elif node.users:
            made.replace(node, write)
    if training:
        for node in list(graph.nodes):
            record = made.normalized(node)
            if record is not None:
                _normalize(found, graph, node, record)
    return _finished(found, graph)


def latents(found: Found) -> fx.Graph:
    """Of every write: the float tensor that it is made from, and what its scales are multiplied by."""
    graph = fx.Graph()
    made = _Made(found, graph, training=False)
    results = [(None, None) if w.source is None else (made.latent(w), made.factor(w)) for w in found.writes.values()]
    graph.output(tuple(results))
    return _finished(found, graph)


class _Made:
    """Makes weights and biases of a graph from the original tensors."""

    def __init__(self, found: Found, graph: fx.Graph, training: bool) -> None:
        self.found, self.graph, self.training = found, graph, training
        # A layer whose quantizer was left out keeps its folded codes, and no BatchNorm follows it.
        weights = (w.source for w in found.writes.values() if w.part == "weight")
        self.records = {id(source) for source in weights if isinstance(source, Folded)}

    def replace(self, node: fx.Node, write: Write) -> None:
        """Put what the tensor is made from in its place."""
        with self.graph.inserting_before(node):
            value = self.value(node, write)
        if value is not None:
            _replace(node, value)
            return
        # The BatchNorm behind the layer brings the only bias.
        for user in list(node.users):
            for layer in [user] if user.target is not aten.to.dtype else list(user.users):
                layer.update_arg(2, None)

    def value(self, node: fx.Node, write: Write) -> fx.Node | None:
        """The weight or bias as the layer reads it."""
        source, live = write.source, self.training and id(write.source) in self.records
        if not isinstance(source, Folded):
            return self._stored(node, write, self.latent(write))
        if write.part == "bias":
            return self._tensor(source.bias) if live else self.latent(write)
        plain = write.quantizer is None and node.target is not aten.to.dtype
        if live and (plain or write.per_output):
            weight = self._tensor(source.weight)
            gamma = self._tensor(source.gamma)
            if plain:
                return weight
            spec = getattr(self.found.modules[str(write.quantizer)], "spec", None)
            if gamma is None or spec is None or spec.symmetric:
                return self.graph.call_module(str(write.quantizer), (weight,))
            # A negative γ would mirror an asymmetric grid.
            weight = self.graph.call_function(oriented, (weight, gamma))
            weight = self.graph.call_module(str(write.quantizer), (weight,))
            return self.graph.call_function(oriented, (weight, gamma))
        stored = self._stored(node, write, self.latent(write), self.factor(write))
        return self.graph.call_function(unfolded, (stored, *self._norm(source))) if live else stored

    def latent(self, write: Write) -> fx.Node:
        """The float tensor, as it is deployed."""
        source = write.source
        if not isinstance(source, Folded):
            return self._tensor(source)
        if write.part == "weight":
            return self.graph.call_function(folded_weight, (self._tensor(source.weight), *self._norm(source)))
        names = (source.bias, source.gamma, source.beta, source.mean, source.variance)
        return self.graph.call_function(folded_bias, (*map(self._tensor, names), source.eps))

    def factor(self, write: Write) -> fx.Node | None:
        """What the scales of a weight are multiplied by: |γ/σ| of a folded BatchNorm."""
        source = write.source
        if not (write.per_output and isinstance(source, Folded)):
            return None
        ndim = self.found.sources.plain(source.weight).ndim
        arguments = (self._tensor(source.gamma), self._tensor(source.variance), source.eps, ndim)
        return self.graph.call_function(scale_factor, arguments)

    def normalized(self, node: fx.Node) -> Folded | None:
        """The BatchNorm that follows a layer while training."""
        record = self.found.sources.folded(node.name) if node.op == "call_function" else None
        return record if id(record) in self.records else None

    def _norm(self, source: Folded) -> tuple[Any, ...]:
        return self._tensor(source.gamma), self._tensor(source.variance), source.eps, source.groups

    def _stored(self, node: fx.Node, write: Write, value: fx.Node, factor: fx.Node | None = None) -> fx.Node:
        if write.quantizer is not None:
            return self.graph.call_module(write.quantizer, (value,) if factor is None else (value, factor))
        if node.target is aten.to.dtype:
            dtype = self.found.sources.quantized.tensor(write.names[0]).dtype
            return self.graph.call_function(stored_as, (value, dtype))
        return value

    def _tensor(self, name: str | None) -> Any:
        """The node of a tensor; of a constant, the nodes that compute it from the parameters."""
        if name is None:
            return None
        sources = self.found.sources
        if name not in sources.constants:
            return self.graph.get_attr(name)
        copies: dict[fx.Node, fx.Node] = {}

        def copy(node: fx.Node) -> fx.Node:
            if node not in copies:
                copies[node] = self.graph.node_copy(node, copy)
            return copies[node]

        return copy(sources.original.node(sources.constants[name]))


def _trained(found: Found, graph: fx.Graph, node: fx.Node) -> None:
    """An operator that computes otherwise while training."""
    if node.target is aten.batch_norm.default and node.args[3] is not None:
        x, gamma, beta, mean, variance, _, momentum, eps = node.args[:8]
        path = str(node.meta.get("path", ""))
        with graph.inserting_before(node):
            made = _batch_norm(found, graph, (x, gamma, beta, mean, variance), momentum, eps, path, title(node))
        _replace(node, made)
    elif node.target is aten.dropout.default and found.dropout:
        node.update_arg(2, True)
    elif node.target in RECURRENT:
        # A GPU refuses the backward pass of a layer that is not in training mode.
        node.update_arg(5, node.args[5] if found.dropout else 0.0)
        node.update_arg(6, True)


def _normalize(found: Found, graph: fx.Graph, layer: fx.Node, record: Folded) -> None:
    """Put a BatchNorm behind a layer, and behind the cast of ours that widens its result."""
    last = layer
    if len(layer.users) == 1 and (user := next(iter(layer.users))).target is aten.to.dtype:
        last = user if user.meta.get("quantizer") else layer
    name = title(layer)
    with graph.inserting_before(last.next):
        names = (record.gamma, record.beta, record.mean, record.variance)
        values = (last, *(None if n is None else graph.get_attr(n) for n in names))
        after = _batch_norm(found, graph, values, record.momentum, record.eps, record.path, name)
    after.meta.update(title=name, path=record.path)
    layer.meta["title"] = f"{name}.weight"
    last.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)


def _batch_norm(
    found: Found, graph: fx.Graph, values: tuple[Any, ...], momentum: Any, eps: Any, path: str, name: str
) -> fx.Node:
    if path in found.sources.cumulative:
        count = graph.get_attr(f"{path}.{COUNT}")
        return graph.call_function(cumulative_batch_norm, (*values, count, eps, path))
    return graph.call_function(batch_norm, (*values, momentum, eps, path or name))


def _replace(node: fx.Node, made: fx.Node) -> None:
    kept = {k: v for k, v in node.meta.items() if k != "val"}
    made.meta.update({k: v for k, v in kept.items() if k not in made.meta})
    node.replace_all_uses_with(made)
    node.graph.erase_node(node)


def _finished(found: Found, graph: fx.Graph) -> fx.Graph:
    """Without dead nodes; constants are made on the device of the module, and tensors have its names."""
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        device = graph.call_function(device_of, (graph.get_attr(DEVICE),))

    def here(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in graph.nodes:
        node.args = map_aggregate(node.args, here)  # type: ignore[assignment]
        node.kwargs = map_aggregate(node.kwargs, here)  # type: ignore[assignment]
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    for node in graph.nodes:
        if node.op == "get_attr" and node.target != DEVICE:
            found.read.add(str(node.target))
            node.target = found.sources.name(str(node.target))
    return graph


def device_of(tensor: Tensor) -> torch.device:
    """Where a module is, by one of its tensors."""
    return tensor.device
