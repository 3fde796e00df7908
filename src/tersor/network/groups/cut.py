"""`cut`: a network without some atoms, and `zeroed`: the same network with zeros in their place."""

import operator
from collections.abc import Callable, Iterable
from functools import partial
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from tersor.network.groups.atoms import Cells
from tersor.network.groups.flow import Order, shape_of
from tersor.network.groups.found import Structure
from tersor.network.groups.shapes import bounds
from tersor.network.network import Network, add_tensor, argument, aten, finish, op_name, set_tensor, title


class Kept:
    """What is left of vectors of cells.

    Args:
        structure: of the network.
        removed: the atoms that go.
    """

    def __init__(self, structure: Structure, removed: Iterable[int]) -> None:
        self.structure, self.removed = structure, set(removed)
        self._gone: dict[int, bool] = {0: False}

    def mask(self, cells: Cells) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """For each cell whether it stays."""
        atoms = self.structure.atoms
        roots, numbers = atoms.distinct(cells)
        for root in roots:
            if root not in self._gone:
                self._gone[root] = not self.removed.isdisjoint(atoms.atoms_of(root))
        return ~np.array([self._gone[r] for r in roots], bool)[numbers]

    def count(self, cells: Cells) -> int:
        """How many stay."""
        return int(self.mask(cells).sum())


def zeroed(structure: Structure, removed: Iterable[int]) -> Network:
    """The network with zeros in all positions of its tensors that these atoms would take; the sizes stay."""
    kept, network = Kept(structure, removed), structure.network.edit()
    for name, value in structure.flow.tensors.items():
        masks = [kept.mask(c) for c in value]
        if all(m.all() for m in masks):
            continue
        tensor = network.tensor(name).clone()
        for dim, mask in enumerate(masks):
            tensor.index_fill_(dim, torch.from_numpy(np.flatnonzero(~mask)), 0)
        set_tensor(network, name, tensor)
    return finish(network)


def cut(structure: Structure, removed: Iterable[int], *, traced: bool = True) -> Network:
    """The network without these atoms: smaller tensors, and the integers of the graph that count them.

    Args:
        traced: whether the traced values get their new sizes; a network that only runs needs none.

    Raises:
        RuntimeError: an operator does not take the smaller values.
    """
    kept, network = Kept(structure, removed), structure.network.edit()
    for name, value in structure.flow.tensors.items():
        masks = [kept.mask(c) for c in value]
        if all(m.all() for m in masks):
            continue
        tensor = network.tensor(name)
        for dim, mask in enumerate(masks):
            if not mask.all():
                tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(mask)))
        set_tensor(network, name, tensor.contiguous())
    pairs = list(zip(structure.network.graph.nodes, network.graph.nodes, strict=True))
    twins = dict(pairs)
    for old, new in pairs:
        if (run := structure.flow.orders.get(old)) is not None:
            _order(kept, run, network, new, twins[run.source])
        elif (edit := EDITS.get(op_name(new)) if new.op == "call_function" else None) is not None:
            edit(kept, old, new)
    if traced:
        _resize(kept, pairs)
    return finish(network)


def _resize(kept: Kept, pairs: list[tuple[fx.Node, fx.Node]]) -> None:
    """The traced values of the smaller network."""
    for old, new in pairs:
        traced, cells = old.meta.get("val"), kept.structure.flow.values.get(old)
        if isinstance(traced, Tensor) and isinstance(cells, tuple):
            new.meta["val"] = _resized(kept, traced, cells)
        elif isinstance(traced, list | tuple) and isinstance(cells, list):
            new.meta["val"] = type(traced)(map(partial(_resized, kept), traced, cells))


def _resized(kept: Kept, traced: Any, cells: Any) -> Any:
    masks = [kept.mask(c) for c in cells or ()]
    if not isinstance(traced, Tensor) or all(m.all() for m in masks):
        return traced
    shape = [n if m.all() else int(m.sum()) for n, m in zip(traced.shape, masks, strict=True)]
    return traced.new_empty(shape)


def _order(kept: Kept, run: Order, network: Network, new: fx.Node, source: fx.Node) -> None:
    """The channels that are left in their order, by their numbers, in place of a run of views."""
    mask = kept.mask(_value(kept, run.source)[run.dim])
    if mask.all():
        return
    order = torch.from_numpy((mask.cumsum() - 1)[run.order[mask[run.order]]])
    name = add_tensor(network, f"{title(new)}.order", order)
    with network.graph.inserting_before(new):
        numbers = network.graph.get_attr(name)
    numbers.meta["val"] = order
    new.target, new.args, new.kwargs = aten.index_select.default, (source, run.dim, numbers), {}


# ------------------------------------------------ integers of the graph
Edit = Callable[[Kept, fx.Node, fx.Node], None]


def _value(kept: Kept, old: fx.Node) -> Any:
    return kept.structure.flow.values[old]


def _set(node: fx.Node, position: int, name: str, value: Any) -> None:
    if len(node.args) > position:
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def _sizes(position: int, name: str) -> Edit:
    """Sizes of the result; one that the graph computes from an input's, such as batch times heads, in its share."""

    def edit(kept: Kept, old: fx.Node, new: fx.Node) -> None:
        given, value = argument(old, position, name), _value(kept, old)
        if not isinstance(given, list | tuple):
            return
        found = []
        for size, cells, own in zip(given, value[-len(given) :], argument(new, position, name), strict=True):
            left = kept.count(cells)
            if isinstance(size, int) and size not in (-1, 1) and len(cells) == size:
                found.append(left)
            elif isinstance(own, fx.Node) and left != len(cells):
                found.append(_share(new, own, left, len(cells)))
            else:
                found.append(own)
        _set(new, position, name, found)

    return edit


def _share(before: fx.Node, size: fx.Node, left: int, whole: int) -> fx.Node:
    """The node ``size * left // whole``."""
    graph, least = before.graph, gcd(left, whole)
    with graph.inserting_before(before):
        times = graph.call_function(operator.mul, (size, left // least))
        share = graph.call_function(operator.floordiv, (times, whole // least))
    for node in (times, share):
        node.meta["title"] = f"{title(before)}.{node.name}"
    return share


def _squeeze(kept: Kept, old: fx.Node, new: fx.Node) -> None:
    """Without dimensions it would take one that is left with a single channel, too."""
    x: Any = _value(kept, old.args[0])  # type: ignore[arg-type]
    if new.target is aten.squeeze.default and isinstance(x, tuple):
        new.target = aten.squeeze.dims
        new.args = (new.args[0], [d for d, cells in enumerate(x) if len(cells) == 1])


def _unflatten(kept: Kept, old: fx.Node, new: fx.Node) -> None:
    given, value = argument(old, 2, "sizes"), _value(kept, old)
    dim = argument(old, 1, "dim") % (len(value) - len(given) + 1)
    counts = [kept.count(value[dim + k]) if isinstance(n, int) and n not in (-1, 1) else n for k, n in enumerate(given)]
    own = argument(new, 2, "sizes")
    _set(new, 2, "sizes", [k if isinstance(n, fx.Node) else c for c, n, k in zip(counts, given, own, strict=True)])


def _repeat(kept: Kept, old: fx.Node, new: fx.Node) -> None:
    """Copies of a single position."""
    x, value, own = _value(kept, old.args[0]), _value(kept, old), list(argument(new, 1, "repeats"))  # type: ignore[arg-type]
    sizes = [1] * (len(value) - len(x)) + [len(c) for c in x]
    for k in range(1, len(own) + 1):
        if sizes[-k] == 1 and isinstance(own[-k], int):
            own[-k] = kept.count(value[-k])
    _set(new, 1, "repeats", own)


def _slice(kept: Kept, old: fx.Node, new: fx.Node) -> None:
    x: Any = _value(kept, old.args[0])  # type: ignore[arg-type]
    dim = argument(old, 1, "dim", 0) % len(x)
    mask = kept.mask(x[dim])
    if mask.all():
        return
    start, stop, _ = bounds(old, len(x[dim]))
    first, last = int(mask[:start].sum()), int(mask[:stop].sum())
    if op_name(old) == "narrow":
        _set(new, 2, "start", first)
        _set(new, 3, "length", last - first)
        return
    new.args = (new.args[0], dim, first, last)
    new.kwargs = {}


def _pieces(kept: Kept, old: fx.Node, new: fx.Node) -> None:
    x: Any = _value(kept, old.args[0])  # type: ignore[arg-type]
    dim = argument(old, 2, "dim", 0) % len(x)
    if kept.mask(x[dim]).all():
        return
    new.target = aten.split_with_sizes.default
    new.args = (new.args[0], [kept.count(part[dim]) for part in _value(kept, old)], dim)
    new.kwargs = {}


def _groups(position: int, name: str) -> Edit:
    """The number of groups."""

    def edit(kept: Kept, old: fx.Node, new: fx.Node) -> None:
        cells = kept.structure.flow.parts.get((old, "groups"))
        if cells is not None:
            _set(new, position, name, kept.count(cells))

    return edit


def _pad(kept: Kept, old: fx.Node, new: fx.Node) -> None:
    amounts, rank = list(argument(new, 1, "pad")), len(_value(kept, old))
    for k in range(len(amounts) // 2):
        for side, at in (("before", 2 * k), ("after", 2 * k + 1)):
            cells = kept.structure.flow.parts.get((old, f"{side} {rank - 1 - k}"))
            if cells is not None:
                amounts[at] = kept.count(cells)
    _set(new, 1, "pad", amounts)


def _scale(kept: Kept, old: fx.Node, new: fx.Node) -> None:
    """The default scale of attention is that of the size of a head, which must stay."""
    q: Any = argument(old, 0, "query")
    if argument(old, 6, "scale") is None and not kept.mask(_value(kept, q)[-1]).all():
        new.update_kwarg("scale", shape_of(q)[-1] ** -0.5)


_SIZES = "view reshape _unsafe_view view_copy expand broadcast_to new_zeros new_ones new_full new_empty"
EDITS: dict[str, Edit] = {
    **dict.fromkeys(_SIZES.split(), _sizes(1, "size")),
    **dict.fromkeys("zeros ones full empty".split(), _sizes(0, "size")),
    "unflatten": _unflatten,
    "squeeze": _squeeze,
    "repeat": _repeat,
    "tile": _repeat,
    "slice": _slice,
    "narrow": _slice,
    **dict.fromkeys("split chunk split_with_sizes".split(), _pieces),
    **dict.fromkeys((f"{kind}{d}d" for kind in ("conv", "conv_transpose") for d in (1, 2, 3)), _groups(6, "groups")),
    "group_norm": _groups(1, "num_groups"),
    "pad": _pad,
    "constant_pad_nd": _pad,
    "scaled_dot_product_attention": _scale,
}
"""For each operator whose integer arguments count channels, how they change."""
