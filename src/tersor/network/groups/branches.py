"""Branches beside a shortcut, which can go as a whole: ``x + f(x)`` becomes ``x``."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import Tensor, fx

from tersor.network.groups.costs import macs_of
from tersor.network.network import Network, aten, finish, op_name, title, weight_node

_ALIAS = aten.alias.default


@dataclass(frozen=True)
class Branch:
    """An addition that could be its shortcut alone.

    Args:
        sum, shortcut, value: names of the addition and of its two operands; ``value`` goes.
        operators: names of all that is computed for ``value`` alone.
        layers: those of them that have weights, by title.
    """

    sum: str
    shortcut: str
    value: str
    operators: frozenset[str]
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """That of its last layer."""
        return self.layers[-1] if self.layers else self.value


def branches(network: Network) -> tuple[Branch, ...]:
    """The branches of a network, in order.

    A branch lies beside a shortcut: the other operand of its addition is what the branch starts from, or has at most
    one product on its way from there, as the projections of residual networks have. It holds more products than its
    shortcut, and both operands have the size of the sum.

    >>> import torch
    >>> from torch import nn
    >>> from tersor.network.capture import capture
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
    ...     def forward(self, x):
    ...         return x + self.down(self.up(x).relu())
    >>> [b.name for b in branches(capture(Block().eval(), (torch.zeros(2, 4),)))]
    ['down']
    """
    found = []
    for node in network.operators():
        if node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
            continue
        one, other = node.args
        if not (_fits(node, one) and _fits(node, other)) or one is other:
            continue
        found += [b for b in (_branch(node, one, other), _branch(node, other, one)) if b is not None][:1]  # type: ignore[arg-type]
    return tuple(found)


def without(network: Network, dropped: Iterable[Branch]) -> Network:
    """The network without these branches; their sums become aliases under the same names, see ``settled``."""
    dropped = list(dropped)
    if not dropped:
        return network
    edited = network.edit()
    nodes = {n.name: n for n in edited.graph.nodes}
    for branch in dropped:
        node = nodes.get(branch.sum)
        if node is not None:  # it may lie in another branch that goes
            node.target, node.args = _ALIAS, (nodes[branch.shortcut],)
    return finish(edited)


def settled(network: Network) -> Network:
    """The network without aliases."""
    edited = network.edit()
    for node in edited.operators():
        if node.target is _ALIAS:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    return finish(edited)


def live(network: Network, dropped: Collection[Branch]) -> set[str]:
    """The names of the nodes that are still computed when these branches have gone."""
    cut = {b.sum: b.value for b in dropped}
    found, left = set[str](), [n for n in network.graph.nodes if n.op in ("output", "placeholder")]
    while left:
        node = left.pop()
        if node.name not in found:
            found.add(node.name)
            left += [n for n in node.all_input_nodes if n.name != cut.get(node.name)]
    return found


def _fits(node: fx.Node, operand: object) -> bool:
    if not isinstance(operand, fx.Node) or operand.op not in ("call_function", "placeholder"):
        return False
    values = node.meta.get("val"), operand.meta.get("val")
    return all(isinstance(v, Tensor) for v in values) and values[0].shape == values[1].shape  # type: ignore[union-attr]


def _branch(node: fx.Node, shortcut: fx.Node, value: fx.Node) -> Branch | None:
    """The branch that ``value`` ends, or None."""
    before = {shortcut} | _before(shortcut)
    own = _only_for(value, node)
    entries = {n for o in own for n in o.all_input_nodes if n not in own and n.op in ("call_function", "placeholder")}
    if not own or not entries & before:
        return None
    way = [] if shortcut in entries else [n for n in _only_for(shortcut, node) if macs_of(n)]
    products = [n for n in own if macs_of(n)]
    if len(way) > 1 or sum(map(macs_of, way)) >= sum(map(macs_of, products)):
        return None
    ordered = [n for n in node.graph.nodes if n in own]
    layers = tuple(title(n) for n in ordered if weight_node(n) is not None and op_name(n) != "embedding")
    return Branch(node.name, shortcut.name, value.name, frozenset(n.name for n in own), layers)


def _before(node: fx.Node) -> set[fx.Node]:
    """All that a value is computed from."""
    found, left = set[fx.Node](), list(node.all_input_nodes)
    while left:
        source = left.pop()
        if source not in found:
            found.add(source)
            left += source.all_input_nodes
    return found


def _only_for(value: fx.Node, reader: fx.Node) -> set[fx.Node]:
    """The operators whose values serve ``value`` alone, itself included, if ``reader`` alone reads it."""
    if set(value.users) != {reader}:
        return set()
    found, left = set[fx.Node](), [value]
    while left:
        node = left.pop()
        if node.op == "call_function" and node not in found:
            found.add(node)
            left += [s for s in node.all_input_nodes if all(u in found for u in s.users)]
    return found
