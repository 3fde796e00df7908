"""Repair without training: the layers that lost inputs learn, in order, what the dense network computed.

Both networks are walked together, so a layer sees the inputs that the layers repaired before it give. Where its output
is added to a shortcut, it is fitted to the dense sum minus the present shortcut, and so makes up for what earlier
layers got wrong.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from tersor.errors import CalibrationError
from tersor.network.groups.cut import Kept
from tersor.network.network import Network, argument, aten, call, op_name, set_tensor, title
from tersor.pipeline.graph.batches import Batch
from tersor.pipeline.graph.pruning.padding import real
from tersor.pipeline.graph.pruning.rows import Layer, layers_of, some_rows
from tersor.solvers.structured import Moments, Repair

ROWS = 2**16  # of each batch at most
Values = dict[str, list[Any]]
"""The values of a node, one for each batch."""


def repaired(
    kept: Kept, small: Network, batches: list[Batch], repair: Repair, on_layer: Callable[[], None] = lambda: None
) -> Network:
    """The small network with fitted weights and shifts.

    Args:
        kept: what is left of the dense network.
        batches: inputs of both.
        repair: an entry of ``REPAIRS``.
        on_layer: called for each layer that is fitted.
    """
    small = small.edit()
    layers = {layer.node.name: layer for layer in layers_of(small)}
    behind = _behind_gaps(small)

    def visit(old: fx.Node, new: fx.Node, before: Values, now: Values) -> None:
        layer = layers.get(new.name)
        if layer is None:
            return
        if new.name in behind or not kept.mask(kept.structure.flow.tensors[layer.weight][layer.columns]).all():
            on_layer()
            _fit(kept, small, layer, old, before, now, repair, batches)

    _walk_together(kept.structure.network, small, batches, visit)
    return small


def _behind_gaps(small: Network) -> set[str]:
    """The operators that read, directly or not, a sum whose branch went."""
    found = set[str]()
    for node in small.graph.nodes:
        if node.target is aten.alias.default or any(s.name in found for s in node.all_input_nodes):
            found.add(node.name)
    return found


def _fit(
    kept: Kept, small: Network, layer: Layer, old: fx.Node, before: Values, now: Values, repair: Repair,
    batches: list[Batch],
) -> None:
    """Fit one layer of the small network."""
    weight, norm = layer.matrix(small), _norm_behind(layer.node, layer.channels)
    moments, dim = Moments(weight.shape[1], weight.shape[0]), layer.channels
    left = torch.from_numpy(kept.mask(kept.structure.flow.values[old][dim]).nonzero()[0])
    slope = None if norm is None else _slope(small, norm)
    shortcut = _shortcut(layer.node if norm is None else norm, before, slope)
    for number, x in enumerate(now[layer.source.name]):
        wanted = before[old.name][number].index_select(dim, left)
        if shortcut is not None:
            apart = before[shortcut][number].index_select(dim, left) - now[shortcut][number]
            wanted = wanted + (apart if slope is None else apart / slope.view(-1, *[1] * (apart.ndim - 2)))
        there = real(batches[number], wanted, dim)
        rows, read = layer.outputs(wanted)[there], layer.inputs(small, x)[there]
        chosen = some_rows(rows, ROWS, number)
        moments.add(read[chosen], rows[chosen])
    if not moments.finite:
        raise CalibrationError(
            f"{title(layer.node)}: its inputs or outputs on the calibration data are NaN or infinite, so it cannot be "
            "repaired: look for bad samples, or take `repair: none`"
        )
    fitted, shift = repair(moments, weight, shifted=layer.bias is not None or norm is not None)
    layer.put(small, fitted)
    if layer.bias is not None:
        set_tensor(small, layer.bias, shift)
    elif norm is not None:
        mean = str(norm.args[3].target)  # type: ignore[union-attr]
        set_tensor(small, mean, small.tensor(mean) - shift)


def _norm_behind(node: fx.Node, dim: int) -> fx.Node | None:
    """The BatchNorm over dimension ``dim`` that alone reads a layer's output, whose mean no other one reads."""
    (user, *others) = node.users
    if others or op_name(user) != "batch_norm" or argument(user, 5, "training") or user.args[0] is not node:
        return None
    weight, _bias, mean, variance = user.args[1:5]
    stored = all(isinstance(n, fx.Node) and n.op == "get_attr" for n in (mean, variance))
    stored = stored and (weight is None or (isinstance(weight, fx.Node) and weight.op == "get_attr"))
    if not stored or dim % node.meta["val"].ndim != 1:  # a BatchNorm over tokens, [batch, tokens, outputs]
        return None
    return user if len(mean.users) == 1 else None  # type: ignore[union-attr]


def _slope(network: Network, norm: fx.Node) -> Tensor:
    """What a BatchNorm multiplies each channel by."""
    weight, variance = norm.args[1], norm.args[4]
    found = (network.tensor(variance) + argument(norm, 7, "eps")).rsqrt()  # type: ignore[arg-type]
    return found * network.tensor(weight) if isinstance(weight, fx.Node) else found


def _shortcut(node: fx.Node, before: Values, slope: Tensor | None) -> str | None:
    """The value that a layer's output is added to, if it is there before the layer."""
    (user, *others) = node.users
    if others or user.target is not aten.add.Tensor or user.kwargs or (slope is not None and slope.abs().min() < 1e-6):
        return None
    other = next((n for n in user.args if n is not node), None)
    if not isinstance(other, fx.Node) or other.name not in before:
        return None
    same = [n.meta["val"].shape for n in (node, other)]
    return other.name if same[0] == same[1] else None


def _walk_together(
    dense: Network, small: Network, batches: list[Batch], visit: Callable[[fx.Node, fx.Node, Values, Values], None]
) -> None:
    """Run both node by node; ``visit`` comes before a small network's node is computed, and may change its tensors."""
    twins = {n.name: n for n in small.graph.nodes}  # some operators of the dense network may have gone
    last: dict[str, str] = {}
    for node in dense.graph.nodes:
        both = (*node.all_input_nodes, *(twins[node.name].all_input_nodes if node.name in twins else ()))
        last |= dict.fromkeys((source.name for source in both), node.name)
    ending: dict[str, list[str]] = {}
    for name, at in last.items():
        ending.setdefault(at, []).append(name)
    values: tuple[Values, Values] = {}, {}
    inputs = iter(range(len(batches[0])))
    with torch.no_grad():
        for old in dense.graph.nodes:
            if old.op == "output":
                return
            if old.op == "placeholder":
                number = next(inputs)
                for known in values:
                    known[old.name] = [batch[number] for batch in batches]
            elif old.op == "call_function":
                values[0][old.name] = _computed(dense, old, values[0], len(batches))
                if (new := twins.get(old.name)) is not None:
                    visit(old, new, *values)
                    values[1][new.name] = _computed(small, new, values[1], len(batches))
            for name in ending.get(old.name, ()):
                for known in values:
                    known.pop(name, None)


def _computed(network: Network, node: fx.Node, values: Values, count: int) -> list[Any]:
    """The node's value for each batch; tensors of the network are read now, since they may have been changed."""

    def of(source: fx.Node, number: int) -> Any:
        if source.op == "get_attr":
            return network.tensor(source)
        if source.name in values:
            return values[source.name][number]
        look = lambda n: of(n, number)  # noqa: E731  # a size that only the small network computes
        return call(source, map_arg(source.args, look), map_arg(source.kwargs, look))

    found = []
    for number in range(count):
        args: Any = map_arg(node.args, lambda n, k=number: of(n, k))
        kwargs: Any = map_arg(node.kwargs, lambda n, k=number: of(n, k))
        found.append(call(node, args, kwargs))
    return found
