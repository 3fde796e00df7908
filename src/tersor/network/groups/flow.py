"""The cells of each value while a graph is read, and what the rules of operators say with them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from tersor.network.groups.atoms import Atoms, Cells, solid
from tersor.network.network import Network, argument, title

Value = tuple[Cells, ...]
"""The cells of a tensor, one vector for each dimension."""


@dataclass(frozen=True)
class Order:
    """Operators that together bring the positions of one dimension into another order.

    Args:
        source: the value that the first of them reads.
        dim: the dimension.
        order: for each position of the result the one of the source.
    """

    source: fx.Node
    dim: int
    order: Cells


@dataclass
class Flow:
    """What is known when an operator is read.

    Args:
        network: the graph.
        atoms: all cells.
        values: those of each node; a list for an operator that returns several tensors, None for no tensor.
        tensors: those of each tensor of the network, by name: layers that share a weight share its cells.
        parts: cells that an integer argument counts, such as the groups of a convolution, by node and purpose.
        sums: what each operator sums over, by its name: where a loss of these cells is felt.
        doubts: sums of what may not be zero where its layers are, and the sentence for it if the check finds so.
        orders: by the last operator of a run that orders one dimension anew.
        inside: the operators of such runs before the last, whose values nothing else reads.
    """

    network: Network
    atoms: Atoms = field(default_factory=Atoms)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    tensors: dict[str, Value] = field(default_factory=dict)
    parts: dict[tuple[fx.Node, str], Cells] = field(default_factory=dict)
    sums: list[tuple[str, Cells]] = field(default_factory=list)
    doubts: list[tuple[Cells, str]] = field(default_factory=list)
    orders: dict[fx.Node, Order] = field(default_factory=dict)
    inside: set[fx.Node] = field(default_factory=set)

    # ------------------------------------------------ values
    def of(self, what: Any) -> Value | None:
        """The cells of an argument, or None where it is no tensor."""
        found = self.values.get(what) if isinstance(what, fx.Node) else None
        return found if isinstance(found, tuple) else None

    def given(self, node: fx.Node, position: int, name: str) -> Value | None:
        """The cells of an argument by position or keyword."""
        return self.of(argument(node, position, name))

    def read(self, node: fx.Node) -> Value:
        """Those of a tensor of the network: one atom for each position, the same wherever it is read."""
        name = str(node.target)
        if name not in self.tensors:
            shape = self.network.tensor(node).shape
            self.tensors[name] = tuple(self.atoms.fresh(n) if n > 1 else solid(n) for n in shape)
        return self.tensors[name]

    def solids(self, node: fx.Node) -> Any:
        """Cells that never go, of the sizes of a node's value."""
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            return tuple(map(solid, sizes(value)))
        if isinstance(value, list | tuple):
            return [tuple(map(solid, sizes(v))) if isinstance(v, Tensor) else None for v in value]
        return None

    # ------------------------------------------------ what rules say
    def contract(self, node: fx.Node, one: Cells, other: Cells) -> None:
        """Two dimensions that an operator multiplies and sums over."""
        self.join(node, one, other)
        self.sums.append((node.name, one))

    def join(self, node: fx.Node, one: Cells, other: Cells) -> None:
        """Two dimensions whose positions go together in an operator."""
        self.atoms.join(one, other, f"{title(node)} reads them beside a dimension that is fixed")

    def joined(self, node: fx.Node, values: Sequence[Value]) -> Value:
        """Those of an elementwise result: dimensions are aligned at the end, and those of size 1 are repeated."""
        rank = max(map(len, values))
        found: list[Cells] = [solid(1)] * rank
        for value in values:
            for k, cells in enumerate(value, rank - len(value)):
                if len(cells) == 1:
                    continue
                if len(found[k]) == 1:
                    found[k] = cells
                elif found[k] is not cells:
                    self.join(node, found[k], cells)
        return tuple(found)

    def freeze(self, cells: Cells, reason: str) -> None:
        """Cells that never go."""
        self.atoms.freeze(cells, reason)

    def freeze_inputs(self, node: fx.Node, reason: str) -> None:
        """Freeze all that an operator reads."""
        for source in node.all_input_nodes:
            found = self.values.get(source)
            for value in found if isinstance(found, list) else [found]:
                for cells in value or ():
                    self.freeze(cells, reason)

    def is_solid(self, cells: Cells) -> bool:
        """Whether none of them can go, as far as the graph was read."""
        return not self.atoms.roots(cells).any()


def sizes(value: Tensor) -> list[int]:
    """The sizes of a traced value; those that vary are the example's."""
    return [number(n) for n in value.shape]


def number(size: Any) -> int:
    """A size as a plain number: that of the example, where it varies; 1 where it hangs on values."""
    if isinstance(size, torch.SymInt):
        return int(size.node.hint) if size.node.has_hint() else 1
    return int(size)


def shape_of(node: fx.Node) -> list[int]:
    """The sizes of a node's value."""
    return sizes(node.meta["val"])
