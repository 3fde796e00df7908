"""Where the tensors of a quantized network come from: the model's parameters, directly or through rewrites."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from tersor.network.network import Network, bias_node, weight_node, weight_position
from tersor.network.trainable.folding import Folded

COUNT = "num_batches_tracked"


@dataclass(frozen=True, eq=False)
class Sources:
    """The networks on the way, and the names of what is trained.

    Args:
        quantized: with quantizers and codes.
        planned: the float network that was quantized.
        original: the captured network.
        parameters: the names of the model's parameters, and whether they are trained.
        constants: the nodes of the original network whose values became tensors, by the names of these.
        cumulative: the batches so far of BatchNorm modules with ``momentum=None``, by dotted name.
    """

    quantized: Network
    planned: Network
    original: Network
    parameters: Mapping[str, bool]
    constants: Mapping[str, str]
    cumulative: Mapping[str, int]

    @cached_property
    def layers(self) -> dict[str, fx.Node]:
        """The operators of the planned network by their names, which the quantized network keeps."""
        return {n.name: n for n in self.planned.operators()}

    def folded(self, layer: str) -> Folded | None:
        """The BatchNorm folded into a layer, unless a later rewrite changed the layer's tensors."""
        node = self.layers.get(layer)
        record = None if node is None else node.meta.get("folded")
        if node is None or not isinstance(record, Folded):
            return None
        values = [self.planned.tensor(n) for n in node.args[1:3] if isinstance(n, fx.Node)]
        same = [v.data_ptr() for v in values] == [r.data_ptr() for r in record.results]
        return record if same else None

    def merged(self) -> list[str]:
        """The layers whose BatchNorm can no longer be told from their weights."""
        return [n.meta["title"] for n in self.layers.values() if "folded" in n.meta and self.folded(n.name) is None]

    def weight_node(self, layer: str) -> fx.Node:
        """The float weight of a layer."""
        tensor = weight_node(self.layers[layer])
        assert tensor is not None
        return tensor

    def plain(self, tensor: str) -> Tensor:
        """A weight from before folding."""
        if tensor in self.constants:
            return _value(self.original, self.original.node(self.constants[tensor]))
        return self.original.tensor(tensor)

    def weight(self, layer: str) -> str | Folded:
        """What the weight of a layer is made from."""
        return self.folded(layer) or str(self.weight_node(layer).target)

    def part_of(self, tensor: fx.Node) -> tuple[Folded, str] | None:
        """The folded layer whose float weight or bias a tensor of the quantized network is."""
        for user in _readers(tensor):
            record = self.folded(user.name)
            if record is not None and user.name in self.layers:
                layer = self.layers[user.name]
                read = layer.args[weight_position(layer)]
                return record, "weight" if isinstance(read, fx.Node) and read.target == tensor.target else "bias"
        return None

    @cached_property
    def _read(self) -> frozenset[str]:
        names = {str(n.target) for n in self.planned.graph.nodes if n.op == "get_attr"}
        for layer in self.layers:
            record = self.folded(layer)
            names |= set() if record is None else {n for n in record.names if n is not None}
        return frozenset(names)

    @cached_property
    def _of_layers(self) -> frozenset[str]:
        found = (n for layer in self.layers.values() for n in (weight_node(layer), bias_node(layer)))
        return frozenset(str(n.target) for n in found if n is not None)

    def name(self, tensor: str) -> str:
        """The name of a tensor in the trainable module: the model's own, where a rewrite replaced its tensor."""
        head, _, number = tensor.rpartition("_")
        known = head in self.parameters or head in self.constants
        return head if number.isdigit() and known and head not in self._read else tensor

    def values(self, tensors: set[str]) -> Iterator[tuple[str, Tensor]]:
        """The parameters and buffers of the module, by their names there, from the tensors that graphs read."""
        for tensor in sorted(tensors):
            path, _, leaf = tensor.rpartition(".")
            if leaf == COUNT and path in self.cumulative:
                yield tensor, torch.tensor(self.cumulative[path], dtype=torch.long)
                continue
            known = (dict(n.tensors()).get(tensor) for n in (self.planned, self.quantized, self.original))
            value = next(v for v in known if v is not None).detach().clone()
            name = self.name(tensor)
            trained = self.parameters.get(name)
            if trained is None and tensor in self._of_layers and tensor not in dict(self.original.tensors()):
                trained = True
            yield name, value if trained is None else nn.Parameter(value, requires_grad=trained)


def _value(network: Network, node: fx.Node) -> Any:
    if node.op == "get_attr":
        return network.tensor(node)
    args, kwargs = (map_arg(a, lambda n: _value(network, n)) for a in (node.args, node.kwargs))
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """The operators that read a tensor, through casts of ours."""
    for user in node.users:
        if user.meta.get("quantizer"):
            yield from _readers(user)
        else:
            yield user


def layer_of(node: fx.Node) -> fx.Node:
    """The first layer that reads a stored weight, through casts of ours."""
    return next(_readers(node))
