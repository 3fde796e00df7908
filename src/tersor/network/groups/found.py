"""`find`: the groups of a network, and why everything else is fixed."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from tersor.network.groups.atoms import SOLID, Atoms, Cells
from tersor.network.groups.flow import Flow, Order, Value
from tersor.network.groups.orders import orders
from tersor.network.groups.table import rule_of
from tersor.network.network import Network, title

Site = tuple[str, int]
"""A dimension of a tensor of the network: its name and the dimension."""


@dataclass(frozen=True)
class Group:
    """Atoms that are alike: the channels of one layer, the heads of one attention.

    Args:
        atoms: each can go by itself, with all that it takes.
        sites: for each dimension of a tensor that loses positions, those of each atom: [atoms, positions of an atom].
    """

    atoms: Cells
    sites: dict[Site, Cells]

    @property
    def name(self) -> str:
        """That of the first tensor that loses positions of its first dimension, where there is one."""
        names = [name for (name, dim) in self.sites if dim == 0] or [name for name, _ in self.sites]
        return names[0]

    def __len__(self) -> int:
        return len(self.atoms)


@dataclass(frozen=True)
class Structure:
    """What can go from a network.

    Args:
        network: the network.
        flow: the cells of all its values.
        groups: what can go.
        fixed: dimensions of weights none of which can go, and why.
    """

    network: Network
    flow: Flow
    groups: tuple[Group, ...]
    fixed: dict[Site, str]

    @property
    def atoms(self) -> Atoms:
        """All cells."""
        return self.flow.atoms


_UNKNOWN = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What a rule raises at a form of the operator that it does not know."""


def find(network: Network) -> Structure:
    """The groups of a network.

    >>> import torch
    >>> from torch import nn
    >>> from tersor.network.capture import capture
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> [(g.name, len(g)) for g in find(capture(net, (torch.zeros(2, 4),))).groups]
    [('0.weight', 8)]
    """
    flow = Flow(network)
    flow.orders, flow.inside = orders(network)
    for node in network.graph.nodes:
        flow.values[node] = _read(flow, node)
    _keep_all_sizes(flow)
    return Structure(network, flow, _groups(flow), _fixed(flow))


def _read(flow: Flow, node: fx.Node) -> Any:
    if node.op == "get_attr":
        return flow.read(node)
    if node.op == "output":
        flow.freeze_inputs(node, "they are the network's output")
        return None
    solids = flow.solids(node)
    if node.op == "placeholder" and isinstance(solids, tuple):
        found = tuple(flow.atoms.fresh(len(c)) if len(c) > 1 else c for c in solids)
        for cells in found:
            flow.freeze(cells, "they are the network's input")
        return found
    if solids is None:
        return None  # sizes, and arithmetic with them
    if node in flow.inside:
        return solids
    if (run := flow.orders.get(node)) is not None:
        return _ordered(flow.values[run.source], run)
    rule = rule_of(node)
    try:
        found = None if rule is None else rule(flow, node)
    except _UNKNOWN:
        found = None
    if found is None or not _fits(found, solids):
        flow.freeze_inputs(node, f"the operator {node.target} of {title(node)} is not known")
        return solids
    return found


def _ordered(x: Value, run: Order) -> Value:
    return (*x[: run.dim], x[run.dim][run.order], *x[run.dim + 1 :])


def _fits(found: Any, solids: Any) -> bool:
    """Whether cells have the sizes of the value."""
    if isinstance(solids, list):
        if not isinstance(found, list) or len(found) != len(solids):
            return False
        return all(f is None or s is None or _fits(f, s) for f, s in zip(found, solids, strict=True))
    return isinstance(found, tuple) and [len(c) for c in found] == [len(c) for c in solids]


def _keep_all_sizes(flow: Flow) -> None:
    """Freeze atoms whose loss would leave nothing of a tensor."""
    changed = True
    while changed:
        changed = False
        for name, value in flow.tensors.items():
            for cells in value:
                everywhere = _in_all(flow, cells)
                if everywhere:
                    flow.freeze(np.array(sorted(everywhere)), f"nothing would be left of {name}")
                    changed = True


def _in_all(flow: Flow, cells: Cells) -> set[int]:
    """The atoms that take every one of these cells."""
    roots = np.unique(flow.atoms.roots(cells)).tolist() if len(cells) > 1 else [SOLID]
    found = set(flow.atoms.atoms_of(roots[0]))
    for root in roots[1:]:
        if not found:
            break
        found.intersection_update(flow.atoms.atoms_of(root))
    return found


def _groups(flow: Flow) -> tuple[Group, ...]:
    """Atoms by the dimensions in which they occur, and how often in each."""
    places: dict[int, dict[Site, list[int]]] = defaultdict(lambda: defaultdict(list))
    floats = {name for name, t in flow.network.tensors() if t.is_floating_point()}
    for name, value in flow.tensors.items():
        for dim, cells in enumerate(value):
            for position, root in enumerate(flow.atoms.roots(cells).tolist()):
                for atom in flow.atoms.atoms_of(root) if root != SOLID else ():
                    places[atom][name, dim].append(position)
    alike: dict[tuple[tuple[Site, int], ...], list[int]] = defaultdict(list)
    for atom, sites in places.items():
        alike[tuple((site, len(found)) for site, found in sites.items())].append(atom)
    return tuple(
        Group(np.array(atoms), {site: np.array([places[a][site] for a in atoms]) for site, _ in key})
        for key, atoms in alike.items()
        if len(atoms) > 1 and any(name in floats for (name, _), _ in key)
    )


def _fixed(flow: Flow) -> dict[Site, str]:
    found = dict[Site, str]()
    for name, value in flow.tensors.items():
        if len(value) < 2:
            continue
        for dim, cells in enumerate(value[:2]):
            if len(cells) > 1 and flow.is_solid(cells):
                found[name, dim] = flow.atoms.reason(int(cells[0]))
    return found
