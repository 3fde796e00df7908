"""Make a batch size dynamic that the model's own code fixes, as with ``len(x)`` or ``int(x.shape[0])``.

The model is traced with batches of 2 and 3. Constants that differ by that factor are the batch size, which is then
read from the input instead. The result is checked against the model with a batch of 5.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tersor.network.network import Network, aten, finish


def repeated(values: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """Repeat the first sample of every tensor ``batch`` times."""
    return pytree.tree_map_only(Tensor, lambda t: t[:1].expand(batch, *t.shape[1:]).clone() if t.ndim else t, values)


def free_batch(two: Network, three: Network) -> Network | None:
    """One network with a dynamic batch from two with fixed ones, or None if they differ in more than the batch."""
    network = two.edit()
    nodes, others = list(network.graph.nodes), list(three.graph.nodes)
    if len(nodes) != len(others):
        return None
    inputs = [n for n in nodes if n.op == "placeholder"]
    with network.graph.inserting_after(inputs[-1]):
        size = network.graph.call_function(aten.sym_size.int, (inputs[0], 0))
    size.meta["title"] = "batch"
    names = dict(zip((n.name for n in others), nodes, strict=True))
    for node, other in zip(nodes, others, strict=True):
        if node.op != other.op or (node.op == "call_function" and node.target is not other.target):
            return None
        try:
            node.args = _join(node.args, other.args, node, size, names)
            node.kwargs = _join(node.kwargs, other.kwargs, node, size, names)
        except ValueError:
            return None
        if free := _differing_dims(node.meta.get("val"), other.meta.get("val")):
            node.meta["free"] = free
    return finish(network)


def _differing_dims(a: Any, b: Any) -> tuple[int, ...]:
    """The dimensions in which two values differ, which depend on the batch."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim == b.ndim):
        return ()
    return tuple(k for k, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n)


def _join(a: Any, b: Any, node: fx.Node, size: fx.Node, names: dict[str, fx.Node]) -> Any:
    if isinstance(a, fx.Node) and isinstance(b, fx.Node) and names[b.name] is a:
        return a
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return type(a)(_join(x, y, node, size, names) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {k: _join(a[k], b[k], node, size, names) for k in a}
    if type(a) is int and type(b) is int and a != b and 3 * a == 2 * b:
        if a == 2:
            return size
        with node.graph.inserting_before(node):
            product = node.graph.call_function(operator.mul, (size, a // 2))
        product.meta["title"] = f"{size.name}.mul"
        return product
    if type(a) is type(b) and (a == b or a != a):
        return a
    raise ValueError("the graphs differ in more than the batch")


def agrees(network: Network, model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...]) -> bool:
    """Whether network and model agree for a batch size that was not traced."""
    five = repeated(values, 5)
    with torch.no_grad():
        try:
            expected = model(**dict(zip(names, five, strict=True))) if names else model(*five)
            actual = network(*(x for x in pytree.tree_leaves(five) if isinstance(x, Tensor)))
        except Exception:  # both may reject such a batch with any exception
            return False
    leaves = [x for x in pytree.tree_leaves(expected) if isinstance(x, Tensor)]
    mine = [actual] if isinstance(actual, Tensor) else list(actual)
    return len(leaves) == len(mine) and all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), 1e-3, 1e-4)
        for a, b in zip(leaves, mine, strict=True)
    )
