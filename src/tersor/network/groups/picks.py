"""Rules of operators that choose positions by numbers, or read places in windows."""

from math import prod
from typing import Any

import numpy as np
from torch import fx

from tersor.network.groups.atoms import solid
from tersor.network.groups.flow import Flow, Value, shape_of
from tersor.network.network import argument


def index(flow: Flow, node: fx.Node) -> Value | None:
    """x[…, indices, …]: positions chosen by number are fixed, the other dimensions stay."""
    x, chosen = flow.of(node.args[0]), list(argument(node, 1, "indices"))
    if x is None:
        return None
    where = [d for d, c in enumerate(chosen) if c is not None]
    for d in where:
        flow.freeze(x[d], "they are chosen by number")
    for value in filter(None, map(flow.of, chosen)):
        for cells in value:
            flow.freeze(cells, "they are numbers of others")
    shape = shape_of(node)
    count = len(shape) - (len(x) - len(where))
    together = where == list(range(where[0], where[-1] + 1))
    at = where[0] if together else 0
    new = list(map(solid, shape[at : at + count]))
    rest = [c for d, c in enumerate(x) if d not in where]
    return (*rest[:at], *new, *rest[at:])


def index_put(flow: Flow, node: fx.Node) -> Value | None:
    """A copy with other values where indices say: the dimensions that none chooses go with those of the values."""
    x, chosen, values = flow.of(node.args[0]), list(argument(node, 1, "indices")), flow.of(node.args[2])
    if x is None or values is None:
        return None
    count = len(chosen)
    if any(c is None for c in chosen):
        return None
    for cells in x[:count]:
        flow.freeze(cells, "they are chosen by number")
    rest = x[count:]
    own = values[len(values) - len(rest) :] if rest else ()
    joined = flow.joined(node, (rest, own)) if rest else ()
    return (*x[:count], *joined)


def index_select(flow: Flow, node: fx.Node) -> Value | None:
    """Positions of one dimension, chosen by number."""
    x, dim = flow.of(node.args[0]), argument(node, 1, "dim")
    if x is None:
        return None
    flow.freeze(x[dim], "they are chosen by number")
    return (*x[: dim % len(x)], solid(shape_of(node)[dim]), *x[dim % len(x) + 1 :])


def index_add(flow: Flow, node: fx.Node) -> Value | None:
    """index_add, index_copy: rows put where numbers say; the other dimensions go with those of the rows."""
    x, dim, rows = flow.of(node.args[0]), argument(node, 1, "dim"), flow.of(node.args[3])
    if x is None or rows is None:
        return None
    dim %= len(x)
    for cells in (x[dim], rows[dim]):
        flow.freeze(cells, "they are chosen by number")
    return flow.joined(node, (x, (*rows[:dim], solid(1), *rows[dim + 1 :])))


def gather(flow: Flow, node: fx.Node) -> Value | None:
    """gather: for each position of the numbers one value; the dimensions beside go together where all are read."""
    x, dim, numbers = flow.of(node.args[0]), argument(node, 1, "dim"), flow.of(node.args[2])
    if x is None or numbers is None or not x:
        return None
    return _beside(flow, node, dim % len(x), numbers, x)


def scatter(flow: Flow, node: fx.Node) -> Value | None:
    """scatter, scatter_add, scatter_reduce: values put where numbers say."""
    read: list[Any] = [flow.of(a) if k != 1 else a for k, a in enumerate(node.args[:4])]
    x, dim, numbers, values = read
    if x is None or numbers is None or not x:
        return None
    dim %= len(x)
    if values is not None:
        numbers = _beside(flow, node, dim, numbers, values)
    return _beside(flow, node, dim, x, numbers)


def _beside(flow: Flow, node: fx.Node, dim: int, one: Value, other: Value) -> Value:
    """The first; dimensions of equal size go together, all others and ``dim`` are fixed."""
    for d, (a, b) in enumerate(zip(one, other, strict=True)):
        if d != dim and len(a) == len(b):
            flow.join(node, a, b)
            continue
        for cells in (a, b):
            flow.freeze(cells, "they are chosen by number")
    return one


def unfold(flow: Flow, node: fx.Node) -> Value | None:
    """Tensor.unfold: windows of one dimension, their positions in a new one at the end."""
    x, dim = flow.of(node.args[0]), argument(node, 1, "dimension")
    if x is None or not x:
        return None
    dim %= len(x)
    flow.freeze(x[dim], "unfold takes windows of them")
    shape = shape_of(node)
    return (*x[:dim], solid(shape[dim]), *x[dim + 1 :], solid(shape[-1]))


def im2col(flow: Flow, node: fx.Node) -> Value | None:
    """im2col, which is nn.Unfold: each channel becomes a block, one position for each of the kernel's."""
    x = flow.of(node.args[0])
    if x is None:
        return None
    for cells in x[-2:]:
        flow.freeze(cells, "im2col reads them as places")
    channels, places = shape_of(node)[-2:]
    return (*x[:-3], np.repeat(x[-3], channels // len(x[-3])), solid(places))


def col2im(flow: Flow, node: fx.Node) -> Value | None:
    """col2im, which is nn.Fold: blocks become channels, so whole blocks go."""
    x, size = flow.of(node.args[0]), prod(argument(node, 2, "kernel_size"))
    if x is None:
        return None
    outer, inner = flow.atoms.split(x[-2], len(x[-2]) // size, size)
    flow.freeze(inner, "col2im makes places of them")
    flow.freeze(x[-1], "col2im makes places of them")
    return (*x[:-2], outer, *map(solid, shape_of(node)[-2:]))
