"""Free a batch that the model's own code fixes, as ``len(x)`` and ``int(x.shape[0])`` do.

The model is traced twice, with a batch of 2 and of 3. Where the two graphs differ, by the same factor, there stood
the batch; it is read from the input instead. What comes out is proved against the model with a batch of 5.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tersor.network.network import Network, aten, finish


def repeated(values: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """The first sample of every tensor, ``batch`` times."""
    return pytree.tree_map_only(Tensor, lambda t: t[:1].expand(batch, *t.shape[1:]).clone() if t.ndim else t, values)


def free_batch(two: Network, three: Network) -> Network | None:
    """One network of any batch from two of a fixed one; None where they differ in more than the batch."""
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
            node.args = _joined(node.args, other.args, node, size, names)
            node.kwargs = _joined(node.kwargs, other.kwargs, node, size, names)
        except ValueError:
            return None
        if free := _differing(node.meta.get("val"), other.meta.get("val")):
            node.meta["free"] = free
    return finish(network)


def _differing(a: Any, b: Any) -> tuple[int, ...]:
    """The dimensions in which two values differ: those that the batch decides."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim == b.ndim):
        return ()
    return tuple(k for k, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n)


def _joined(a: Any, b: Any, node: fx.Node, size: fx.Node, names: dict[str, fx.Node]) -> Any:
    if isinstance(a, fx.Node) and isinstance(b, fx.Node) and names[b.name] is a:
        return a
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return type(a)(_joined(x, y, node, size, names) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {k: _joined(a[k], b[k], node, size, names) for k in a}
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
    """Whether network and model give the same for a batch that neither trace has seen."""
    five = repeated(values, 5)
    with torch.no_grad():
        try:
            wanted = model(**dict(zip(names, five, strict=True))) if names else model(*five)
            found = network(*(x for x in pytree.tree_leaves(five) if isinstance(x, Tensor)))
        except Exception:  # either may refuse such a batch in its own way
            return False
    leaves = [x for x in pytree.tree_leaves(wanted) if isinstance(x, Tensor)]
    mine = [found] if isinstance(found, Tensor) else list(found)
    return len(leaves) == len(mine) and all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), 1e-3, 1e-4)
        for a, b in zip(leaves, mine, strict=True)
    )
