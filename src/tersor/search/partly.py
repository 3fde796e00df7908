"""A network of which some operators are quantized as planned, and the others compute in float."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from tersor.measure.layers import own_value
from tersor.network.network import Network, call, op_name
from tersor.network.quantize import is_quantizer
from tersor.pipeline.graph.pruning.padding import part_of
from tersor.policy.operators import MOVES
from tersor.task import batch_size

CHUNK = 16
"""Samples whose values are in memory at once."""


class Partly:
    """Runs the float network, with the operators that are named as the quantized network computes them.

    Args:
        floats: the network that was planned.
        quantized: the result; its nodes have the same names.
        names: of the operators that are quantized.
    """

    def __init__(self, floats: Network, quantized: Network, names: Collection[str]) -> None:
        self.floats, self.quantized, self.names = floats, quantized, frozenset(names)
        self.twins = {node.name: node for node in quantized.graph.nodes}

    def __call__(self, *inputs: Tensor) -> Any:
        """The outputs, as those of a network: one tensor, or a tuple."""
        out = self.outputs(inputs)
        return out[0] if len(out) == 1 else tuple(out)

    def outputs(self, inputs: tuple[Tensor, ...]) -> list[Any]:
        """All outputs."""
        parts = [self._run(part) for part in parts_of(inputs, self.floats)]
        return [torch.cat(each) if each[0].ndim else each[0] for each in zip(*parts, strict=True)]

    @torch.no_grad()
    def _run(self, inputs: tuple[Tensor, ...]) -> list[Any]:
        values, feed = dict[str, Any](), iter(inputs)

        def of(node: fx.Node) -> Any:
            return values[node.name]

        for node in self.floats.graph.nodes:
            if node.op == "placeholder":
                values[node.name] = next(feed)
            elif node.op == "get_attr":
                values[node.name] = self.floats.tensor(node)
            elif node.op == "output":
                return list(map_arg(node.args[0], of))
            elif node.name in self.names:
                values[node.name] = own_value(self.twins[node.name], values, self.quantized)
            else:
                values[node.name] = call(node, map_arg(node.args, of), map_arg(node.kwargs, of))
        raise AssertionError("a graph without an output node")


def parts_of(inputs: tuple[Tensor, ...], network: Network) -> Iterator[tuple[Tensor, ...]]:
    """The inputs, a few samples at a time; all at once where the batch size is fixed."""
    size = CHUNK if network.dynamic_batch else batch_size(inputs)
    for first in range(0, batch_size(inputs), size):
        yield part_of(inputs, first, first + size)


def quantized_operators(floats: Network, quantized: Network) -> list[fx.Node]:
    """The operators of the float network that compute with quantized values in the quantized one, in graph order."""
    reads = {n.name for n in quantized.graph.nodes if any(map(is_quantizer, n.all_input_nodes)) and not is_quantizer(n)}
    return [n for n in floats.operators() if n.name in reads and op_name(n) not in MOVES]
