"""Layers as sums over columns: the inputs of a layer as rows of a matrix, its outputs as rows of another."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from tersor.network.network import (
    CONVOLUTIONS,
    LINEARS,
    Network,
    argument,
    aten,
    bias_node,
    groups_of,
    set_tensor,
    weight_node,
)
from tersor.pipeline.graph.observing.grams import layer_problem
from tersor.solvers.patches import patches

_EVERY = 1 << 40  # more rows than there are
# Products with a weight that is stored [columns, outputs]: where the bias, the input and the weight are.
PRODUCTS: dict[Any, tuple[int | None, int, int]] = {
    aten.addmm.default: (0, 1, 2),
    aten.mm.default: (None, 0, 1),
    aten.matmul.default: (None, 0, 1),
}


@dataclass(frozen=True)
class Layer:
    """A convolution in one group, or a linear layer, whose output is rows·matrixᵀ + bias.

    Args:
        node, source: of the graph: the operator, and what it reads.
        weight, bias: names of its tensors; a bias may be missing.
        turned: whether the weight is stored [columns, outputs].
    """

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str | None
    turned: bool = False

    @property
    def columns(self) -> int:
        """The dimension of the weight that holds the inputs."""
        return 0 if self.turned else 1

    @property
    def channels(self) -> int:
        """The dimension of the outputs that holds the channels."""
        return 1 if self.node.target in CONVOLUTIONS else -1

    def matrix(self, network: Network) -> Tensor:
        """Its weight: [outputs, columns]."""
        weight = network.tensor(self.weight)
        return weight.T if self.turned else weight.flatten(1)

    def put(self, network: Network, matrix: Tensor) -> None:
        """Replace its weight in an edited network."""
        set_tensor(network, self.weight, self.shaped(network, matrix))

    def shaped(self, network: Network, matrix: Tensor) -> Tensor:
        """The matrix in the shape of the weight."""
        return matrix.T.contiguous() if self.turned else matrix.reshape(network.tensor(self.weight).shape)

    def inputs(self, network: Network, x: Tensor) -> Tensor:
        """What its columns are multiplied by: [rows, columns]."""
        if self.node.target not in CONVOLUTIONS:
            return x.reshape(-1, x.shape[-1])
        return patches(replace(layer_problem(network, self.node), sample=x), _EVERY)[0]

    def outputs(self, y: Tensor) -> Tensor:
        """Its outputs, or its inputs by channel: [rows, channels], outputs in the order of ``inputs``."""
        last = y.movedim(self.channels, -1)
        return last.reshape(-1, last.shape[-1])


def layers_of(network: Network) -> Iterator[Layer]:
    """All of them whose weight and bias no other operator reads, in graph order."""
    operators = network.operators()
    read = Counter(str(s.target) for n in operators for s in n.all_input_nodes if s.op == "get_attr")
    for node in operators:
        found = _layer(node)
        if found is not None and read[found.weight] == 1 and (found.bias is None or read[found.bias] == 1):
            yield found


def _layer(node: fx.Node) -> Layer | None:
    if node.target in (*CONVOLUTIONS, *LINEARS):
        weight, bias, given = weight_node(node), bias_node(node), argument(node, 2, "bias")
        if weight is None or groups_of(node) != 1 or (bias is None and given is not None):
            return None
        return Layer(node, node.args[0], str(weight.target), bias and str(bias.target))  # type: ignore[arg-type]
    if node.target not in PRODUCTS or node.kwargs:  # such as alpha and beta
        return None
    at, source, weight = (None if k is None else node.args[k] for k in PRODUCTS[node.target])
    if not isinstance(source, fx.Node) or source.op == "get_attr" or not isinstance(weight, fx.Node):
        return None
    if weight.op != "get_attr" or weight.meta["val"].ndim != 2:
        return None
    if at is not None and (not isinstance(at, fx.Node) or at.op != "get_attr" or at.meta["val"].ndim != 1):
        return None
    return Layer(node, source, str(weight.target), at and str(at.target), turned=True)


def some_rows(rows: Tensor, limit: int, seed: int) -> Tensor | slice:
    """The numbers of at most ``limit`` rows, by lot; all of them where there are no more."""
    if len(rows) <= limit:
        return slice(None)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(rows), generator=generator)[:limit]
