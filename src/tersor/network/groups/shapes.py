"""Rules of operators that arrange values anew: views, permutations, parts and joins."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from torch import fx

from tersor.network.groups.atoms import Cells, solid
from tersor.network.groups.flow import Flow, Value, shape_of, sizes
from tersor.network.network import argument, op_name

VIEWS = tuple("view reshape flatten unflatten _unsafe_view view_copy".split())
MOVED = tuple("transpose permute t numpy_T mT movedim swapaxes".split())


def view(flow: Flow, node: fx.Node) -> Value:
    """view, reshape, flatten, unflatten: dimensions are merged and split where their sizes meet."""
    x = flow.of(node.args[0])
    assert x is not None
    return reshaped(flow, x, shape_of(node))


def reshaped(flow: Flow, x: Value, shape: Sequence[int]) -> Value:
    """The cells of ``x`` in another shape."""
    found: list[Cells] = []
    for sources, targets in segments([len(c) for c in x], list(shape)):
        cells = [x[k] for k in sources]
        wanted = [shape[k] for k in targets]
        found += _segment(flow, cells, wanted)
    return tuple(found)


def _segment(flow: Flow, cells: list[Cells], wanted: list[int]) -> list[Cells]:
    if [len(c) for c in cells if len(c) != 1] == [n for n in wanted if n != 1]:
        rest = iter([c for c in cells if len(c) != 1])
        return [solid(1) if n == 1 else next(rest) for n in wanted]
    if all(map(flow.is_solid, cells)):
        return [solid(n) for n in wanted]
    flat = cells[0] if cells else solid(1)
    for inner in cells[1:]:
        flat = flow.atoms.product(flat, inner)
    found = []
    while len(wanted) > 1:
        first, wanted = wanted[0], wanted[1:]
        outer, flat = flow.atoms.split(flat, first, prod(wanted))
        found.append(outer)
    return [*found, flat]


def segments(old: list[int], new: list[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of old and new dimensions with equal products, as short as possible."""
    found, i, j = list[tuple[list[int], list[int]]](), 0, 0
    if 0 in old:
        return [(list(range(len(old))), list(range(len(new))))]
    while i < len(old) or j < len(new):
        a, b = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(a), j + len(b)
        left, right = prod(old[k] for k in a), prod(new[k] for k in b)
        while left != right:
            if left < right:
                a, left, i = [*a, i], left * old[i], i + 1
            else:
                b, right, j = [*b, j], right * new[j], j + 1
        found.append((a, b))
    return found


def moved(flow: Flow, node: fx.Node) -> Value:
    """transpose, permute, and what else returns the same dimensions in another order."""
    x = flow.of(node.args[0])
    assert x is not None
    return tuple(x[d] for d in moved_order(node, len(x)))


def moved_order(node: fx.Node, rank: int) -> list[int]:
    """For each dimension of the result the one of a value of that rank."""
    name = op_name(node)
    if name == "permute":
        return [d % rank for d in argument(node, 1, "dims")]
    if name in ("t", "numpy_T", "mT"):
        return [*range(rank - 2), *reversed(range(max(0, rank - 2), rank))]
    if name == "movedim":
        return _movedim(rank, argument(node, 1, "source"), argument(node, 2, "destination"))
    one, other = argument(node, 1, "dim0") % rank, argument(node, 2, "dim1") % rank
    order = list(range(rank))
    order[one], order[other] = order[other], order[one]
    return order


def _movedim(rank: int, source: Any, destination: Any) -> list[int]:
    source, destination = ([v] if isinstance(v, int) else list(v) for v in (source, destination))
    source, destination = [d % rank for d in source], [d % rank for d in destination]
    rest = iter(d for d in range(rank) if d not in source)
    placed = dict(zip(destination, source, strict=True))
    return [placed[d] if d in placed else next(rest) for d in range(rank)]


def expand(flow: Flow, node: fx.Node) -> Value:
    """expand, expand_as: dimensions of size 1, and new ones in front, become as many equal ones as are needed."""
    x, shape = flow.of(node.args[0]), shape_of(node)
    assert x is not None
    given = (solid(1),) * (len(shape) - len(x)) + x
    if op_name(node) == "expand_as":
        other = flow.of(node.args[1])
        assert other is not None
        return tuple(o if len(c) == 1 else c for c, o in zip(given, other, strict=True))
    asked = argument(node, 1, "size")
    return tuple(_copies(flow, c, n, a) for c, n, a in zip(given, shape, asked, strict=True))


def _copies(flow: Flow, cells: Cells, count: int, asked: Any) -> Cells:
    """A dimension, or where its size was 1, copies of it: fixed where the graph computes how many."""
    if len(cells) != 1 or count == 1:
        return cells
    return flow.atoms.fresh(count) if isinstance(asked, int) else solid(count)


def repeat(flow: Flow, node: fx.Node) -> Value:
    """repeat, tile: whole dimensions one after another."""
    x, shape, times = flow.of(node.args[0]), shape_of(node), list(argument(node, 1, "repeats"))
    assert x is not None
    given = (solid(1),) * (len(shape) - len(x)) + x
    times = [1] * (len(shape) - len(times)) + times
    return tuple(np.tile(c, n // len(c)) if len(c) > 1 else _copies(flow, c, n, t)
                 for c, n, t in zip(given, shape, times, strict=True))  # fmt: skip


def view_as_real(flow: Flow, node: fx.Node) -> Value:
    """view_as_real: the real and the imaginary part in a new dimension."""
    x = flow.of(node.args[0])
    assert x is not None
    return (*x, solid(2))


def view_as_complex(flow: Flow, node: fx.Node) -> Value:
    """view_as_complex: the last dimension holds both parts."""
    x = flow.of(node.args[0])
    assert x is not None
    flow.freeze(x[-1], "view_as_complex makes one number of both")
    return x[:-1]


def repeat_interleave(flow: Flow, node: fx.Node) -> Value | None:
    """repeat_interleave by one number: each position several times."""
    x, times, dim = flow.of(node.args[0]), argument(node, 1, "repeats"), argument(node, 2, "dim")
    if x is None or not isinstance(times, int) or dim is None:
        return None
    return tuple(np.repeat(c, times) if k == dim % len(x) else c for k, c in enumerate(x))


def squeeze(flow: Flow, node: fx.Node) -> Value:
    """squeeze, unsqueeze: dimensions of size 1 go or come."""
    x = flow.of(node.args[0])
    assert x is not None
    return reshaped(flow, x, shape_of(node))


def slice_(flow: Flow, node: fx.Node) -> Value:
    """slice, narrow, select: a part of a dimension; every second position and single ones freeze it."""
    x, name = flow.of(node.args[0]), op_name(node)
    assert x is not None
    dim = argument(node, 1, "dim", 0) % len(x)
    start, stop, step = bounds(node, len(x[dim]))
    if any(isinstance(v, fx.Node) for v in (*node.args[2:4], *node.kwargs.values())):
        flow.freeze(x[dim], f"{name} takes as many of them as an input has")
    if name == "select" or step != 1:
        flow.freeze(x[dim], f"{name} takes single positions of them")
    part = x[dim][start:stop:step]
    return (*x[:dim], *(() if name == "select" else (part,)), *x[dim + 1 :])


def bounds(node: fx.Node, size: int) -> tuple[int, int, int]:
    """Start, stop and step of a slice, narrow or select over a dimension of that size."""
    name = op_name(node)
    if name == "select":
        index = argument(node, 2, "index")
        index = index if isinstance(index, int) else 0
        return index % size, index % size + 1, 1
    start = argument(node, 2, "start", 0)
    if name == "narrow":
        return (start, start + argument(node, 3, "length"), 1) if isinstance(start, int) else (0, size, 2)
    stop, step = argument(node, 3, "end"), argument(node, 4, "step", 1)
    if not all(isinstance(v, int | None) for v in (start, stop)):
        value = node.meta["val"]  # bounds that vary: those of the example
        return 0, sizes(value)[argument(node, 1, "dim", 0)], 1
    start, stop, step = slice(start, stop, step).indices(size)
    return start, stop, step


def pieces(flow: Flow, node: fx.Node) -> list[Value]:
    """split, chunk, split_with_sizes, tensor_split: parts one after another."""
    x, name = flow.of(node.args[0]), op_name(node)
    assert x is not None
    dim = argument(node, 2, "dim", 0) % len(x)
    found, start = list[Value](), 0
    for value in node.meta["val"]:
        size = sizes(value)[dim]
        found.append((*x[:dim], x[dim][start : start + size], *x[dim + 1 :]))
        start += size
    if name == "tensor_split" and not flow.is_solid(x[dim]):
        flow.freeze(x[dim], "tensor_split cuts at fixed places")
    return found


def unbind(flow: Flow, node: fx.Node) -> list[Value]:
    """unbind: one value for each position, which never goes."""
    x = flow.of(node.args[0])
    assert x is not None
    dim = argument(node, 1, "dim", 0) % len(x)
    flow.freeze(x[dim], "unbind returns each of them as a value")
    return [(*x[:dim], *x[dim + 1 :])] * len(x[dim])


def cat(flow: Flow, node: fx.Node) -> Value:
    """cat: the joined dimension one part after another, the others together."""
    parts = [v for v in map(flow.of, node.args[0]) if v is not None and v]  # type: ignore[arg-type]
    rank = len(parts[0])
    parts = [p for p in parts if len(p) == rank]  # the empty tensor that some code starts with
    dim = argument(node, 1, "dim", 0) % rank
    rest = flow.joined(node, [(*p[:dim], solid(1), *p[dim + 1 :]) for p in parts])
    return (*rest[:dim], np.concatenate([p[dim] for p in parts]), *rest[dim + 1 :])


def stack(flow: Flow, node: fx.Node) -> Value:
    """stack: a new dimension, which never goes."""
    parts = [v for v in map(flow.of, node.args[0]) if v is not None]  # type: ignore[arg-type]
    rest = flow.joined(node, parts)
    dim = argument(node, 1, "dim", 0) % (len(rest) + 1)
    return (*rest[:dim], solid(len(parts)), *rest[dim:])


def getitem(flow: Flow, node: fx.Node) -> Any:
    """One of several results."""
    found = flow.values.get(node.args[0])  # type: ignore[arg-type]
    return found[node.args[1]] if isinstance(found, list) else flow.solids(node)  # type: ignore[index]


def pad(flow: Flow, node: fx.Node) -> Value:
    """pad, constant_pad_nd: zeros are atoms of their own; anything else freezes the padded channels."""
    x, amounts = flow.of(node.args[0]), argument(node, 1, "pad")
    assert x is not None
    constant = op_name(node) == "constant_pad_nd" or argument(node, 2, "mode", "constant") == "constant"
    value = argument(node, 2, "value", 0) if op_name(node) == "constant_pad_nd" else argument(node, 3, "value", 0)
    found = list(x)
    for k in range(len(amounts) // 2):
        dim, (before, after) = len(x) - 1 - k, amounts[2 * k : 2 * k + 2]
        if not all(isinstance(n, int) for n in (before, after)):
            found[dim] = solid(shape_of(node)[dim])
        elif (before, after) == (0, 0):
            continue
        elif flow.is_solid(x[dim]) or not constant or value or min(before, after) < 0:
            flow.freeze(x[dim], "they are padded by other values than zeros")
            found[dim] = solid(shape_of(node)[dim])
        else:
            ends = flow.atoms.fresh(before), flow.atoms.fresh(after)
            flow.parts[node, f"before {dim}"], flow.parts[node, f"after {dim}"] = ends
            found[dim] = np.concatenate((ends[0], x[dim], ends[1]))
    return tuple(found)


def pixel_shuffle(flow: Flow, node: fx.Node) -> Value:
    """pixel_shuffle: blocks of r² channels become r² pixels, so whole blocks go."""
    x, factor = flow.of(node.args[0]), argument(node, 1, "upscale_factor")
    assert x is not None
    outer, inner = flow.atoms.split(x[-3], len(x[-3]) // factor**2, factor**2)
    flow.freeze(inner, "pixel_shuffle makes pixels of them")
    return (*x[:-3], outer, *map(solid, shape_of(node)[-2:]))


def pixel_unshuffle(flow: Flow, node: fx.Node) -> Value:
    """pixel_unshuffle: each channel becomes a block of r²."""
    x, factor = flow.of(node.args[0]), argument(node, 1, "downscale_factor")
    assert x is not None
    return (*x[:-3], np.repeat(x[-3], factor**2), *map(solid, shape_of(node)[-2:]))
