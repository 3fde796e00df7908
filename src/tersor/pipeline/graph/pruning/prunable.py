"""The weights of a graph that may become zero: of convolutions, linear and recurrent layers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import fx

from tersor.errors import RecipeError
from tersor.network.network import (
    CONVOLUTIONS,
    LINEARS,
    TRANSPOSED,
    Network,
    title,
    weight_node,
)
from tersor.network.trainable.graphs import RECURRENT
from tersor.pipeline.graph.pruning.groups import layer_of, some
from tersor.pipeline.graph.pruning.rows import PRODUCTS
from tersor.tables import nearest


@dataclass(frozen=True)
class Weight:
    """A weight whose values may become zero.

    Args:
        name: of the tensor; the parameter has the same one.
        layer: for patterns and reports; with the tensor's own name if the layer has several.
        inputs: the dimension that holds the inputs.
        node: the operator that reads it; of a shared one the first.
        source: what that multiplies it by; None where this is not one value, as in recurrent layers.
    """

    name: str
    layer: str
    inputs: int
    node: fx.Node
    source: fx.Node | None = None

    @property
    def outputs(self) -> int:
        """The dimension that holds the outputs."""
        return 1 - self.inputs


def weights_of(network: Network) -> tuple[dict[str, Weight], dict[str, str]]:
    """Every weight that may become zero, by name; and why those of other layers may not, by layer."""
    found, left = dict[str, Weight](), dict[str, str]()
    for node in network.operators():
        places = _places(node)
        if places is None:
            if node.target in (*CONVOLUTIONS, *LINEARS, *TRANSPOSED) and weight_node(node) is None:
                left[title(node)] = "its weight is computed from others"
            continue
        for read, inputs, source in places:
            name = str(read.target)
            if not network.tensor(read).is_floating_point():
                continue
            if any(_places(user) is None for user in read.users):
                left[layer_of(name)] = "an operator that is no layer reads its weight, too"
            elif name not in found:
                layer = layer_of(name) if len(places) == 1 else name
                found[name] = Weight(name, layer, inputs, node, source)
    return found, left


def chosen(
    network: Network, layers: Sequence[str], keep: Sequence[str]
) -> tuple[dict[str, Weight], dict[str, str]]:
    """The weights that patterns of names of layers allow, and why others stay, by layer.

    Args:
        layers: what may become zero; empty: all.
        keep: what stays.

    Raises:
        RecipeError: a pattern fits no layer, or one that cannot lose weights; or nothing is left.
    """
    found, left = weights_of(network)
    for pattern in (*layers, *keep):
        if any(_fits(w, [pattern]) for w in found.values()):
            continue
        stuck = [layer for layer in left if fnmatchcase(layer, pattern)]
        if not stuck:
            known = sorted({*(w.layer for w in found.values()), *left})
            raise RecipeError(
                f"no layer with weights is called {pattern!r}{nearest(pattern, known)}; there are {some(known)}"
            )
        if pattern in layers:
            raise RecipeError(
                f"the weights of {stuck[0]} cannot become zero: {left[stuck[0]]}; leave {pattern!r} out of `layers`"
            )
    taken = {
        name: w for name, w in found.items() if (not layers or _fits(w, layers)) and not _fits(w, keep)
    }  # fmt: skip
    if not taken:
        why = next((f": {why}" for why in left.values()), "")
        raise RecipeError(f"no weight is left that may become zero{why}; give other `layers` or `keep`")
    return taken, left


def _fits(weight: Weight, patterns: Iterable[str]) -> bool:
    names = (weight.layer, layer_of(weight.name), weight.name)
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _places(node: fx.Node) -> list[tuple[fx.Node, int, fx.Node | None]] | None:
    """The tensors that a layer multiplies its input by, the dimension of the inputs, and the input; None: no layer."""
    if node.target in (*CONVOLUTIONS, *LINEARS, *TRANSPOSED):
        weight, source = weight_node(node), node.args[0]
        turned = node.target in TRANSPOSED
        if weight is None or not isinstance(source, fx.Node):
            return None
        return [(weight, 0 if turned else 1, None if turned else source)]
    if node.target in PRODUCTS:
        _bias, *read = PRODUCTS[node.target]
        source, weight = (node.args[k] for k in read)
        if not (isinstance(source, fx.Node) and isinstance(weight, fx.Node) and weight.op == "get_attr"):
            return None
        return [(weight, 0, source)] if weight.meta["val"].ndim == 2 else None
    if node.target in RECURRENT:
        parts = [part for a in node.args if isinstance(a, (list, tuple)) for part in a]
        tensors = [p for p in parts if isinstance(p, fx.Node) and p.op == "get_attr"]
        return [(p, 1, None) for p in tensors if p.meta["val"].ndim == 2]
    return None
