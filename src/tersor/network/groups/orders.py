"""Runs of views and transposes that together only bring the positions of one dimension into another order.

Channel shuffles are written so. Read one by one, their views would split the channels, and what goes would have to be
the same of each part; read as one, each channel goes by itself.
"""

import numpy as np
from torch import Tensor, fx

from tersor.network.groups.atoms import Cells
from tersor.network.groups.flow import Order, shape_of
from tersor.network.groups.shapes import MOVED, VIEWS, moved_order
from tersor.network.network import Network, argument, op_name

PASSING = ("contiguous", "clone")
SHUFFLES = ("channel_shuffle", "native_channel_shuffle")
LIMIT = 1 << 24
"""The largest tensor that is looked at."""


def orders(network: Network) -> tuple[dict[fx.Node, Order], set[fx.Node]]:
    """The last operators of such runs, and all the operators before them.

    >>> import torch
    >>> from tersor.network.capture import capture
    >>> class Shuffle(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x.view(-1, 2, 3).transpose(1, 2).reshape(-1, 6)
    >>> found, _ = orders(capture(Shuffle().eval(), (torch.zeros(4, 6),)))
    >>> [order.order.tolist() for order in found.values()]
    [[0, 3, 1, 4, 2, 5]]
    """
    found: dict[fx.Node, Order] = {}
    inside: set[fx.Node] = set()
    for node in network.operators():
        if op_name(node) in VIEWS and node not in inside and node not in found:
            run, order = _run(node)
            if order is not None:
                found[run[-1]] = order
                inside.update(run[:-1])
        elif op_name(node) in SHUFFLES:
            source, groups = node.args[0], argument(node, 1, "groups")
            assert isinstance(source, fx.Node)
            found[node] = Order(source, 1, np.arange(shape_of(node)[1]).reshape(groups, -1).T.ravel())
    return found, inside


def _run(first: fx.Node) -> tuple[list[fx.Node], Order | None]:
    """The shortest run that starts here and returns the shape of its source."""
    source = first.args[0]
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return [], None
    shape = shape_of(source)
    if not 0 < np.prod(shape, dtype=np.int64) <= LIMIT or len(shape_of(first)) <= len(shape):
        return [], None
    places = np.arange(np.prod(shape), dtype=np.int64)
    run, now = [first], places.reshape(shape_of(first))
    while len(run[-1].users) == 1:
        (user,) = run[-1].users
        if user.op != "call_function" or user.args[0] is not run[-1]:
            break
        name = op_name(user)
        if name in VIEWS:
            now = now.reshape(shape_of(user))
        elif name in MOVED:
            now = now.transpose(moved_order(user, now.ndim))
        elif name not in PASSING:
            break
        run.append(user)
        if list(now.shape) == shape and name in VIEWS:
            found = _ordered(places.reshape(shape), now)
            return run, None if found is None else Order(source, *found)
    return [], None


def _ordered(old: Cells, new: Cells) -> tuple[int, Cells] | None:
    """The one dimension whose positions are in another order, and that order; None where it is not so."""
    for dim, size in enumerate(old.shape):
        stride = int(np.prod(old.shape[dim + 1 :], dtype=np.int64))
        order = new.reshape(-1)[: size * stride : stride] // stride
        if (order != np.arange(size)).any():
            same = order.max() < size and np.array_equal(old.take(order, dim), new)
            return (dim, order) if same else None
    return None
