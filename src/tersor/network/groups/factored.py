"""A linear layer or 1×1 convolution as two thinner ones, in the graph."""

from torch import Tensor, fx

from tersor.network.network import (
    CONVOLUTIONS,
    LINEARS,
    Network,
    add_tensor,
    argument,
    bias_node,
    groups_of,
    set_tensor,
    title,
    weight_node,
)


def factorable(node: fx.Node) -> bool:
    """Whether it is a linear layer, or a convolution of one group whose kernel is one point."""
    if node.target not in (*LINEARS, *CONVOLUTIONS) or weight_node(node) is None or groups_of(node) != 1:
        return False
    padding = argument(node, 4, "padding", 0) if node.target in CONVOLUTIONS else 0
    return node.args[1].meta["val"][0, 0].numel() == 1 and padding in (0, [0], [0, 0], [0, 0, 0], "valid")  # type: ignore[union-attr]


def factor(network: Network, name: str, first: Tensor, second: Tensor, shift: Tensor | None = None) -> None:
    """Replace the layer ``name`` of an edited network by two; the second keeps its node and its bias.

    Args:
        first, second: ``[rank, columns]`` and ``[outputs, rank]``.
        shift: added to the bias, if there is one.
    """
    node = network.node(name)
    weight = weight_node(node)
    assert weight is not None
    old, x = network.tensor(weight), node.args[0]
    path, bias = str(weight.target).rpartition(".")[0] or str(weight.target), bias_node(node)
    points = old.shape[2:]
    names = [
        add_tensor(network, f"{path}.{part}.weight", t.reshape(*t.shape, *[1] * len(points)))
        for part, t in (("first", first), ("second", second))
    ]
    given, own = argument(node, 2, "bias"), {k: v for k, v in node.kwargs.items() if k != "bias"}
    with network.graph.inserting_before(node):
        read = [network.graph.get_attr(n) for n in names]
        inner = network.graph.call_function(node.target, (x, read[0], None, *node.args[3:]), own)  # type: ignore[arg-type]
    for source in read:
        source.meta["val"] = network.tensor(source)
    shape = list(node.meta["val"].shape)
    shape[1 if node.target in CONVOLUTIONS else -1] = len(first)
    inner.meta.update(node.meta, val=node.meta["val"].new_empty(shape), title=f"{title(node)}.first")
    stride = ([1] * len(points),) if points else ()  # the first one has that of the layer
    node.args, node.kwargs = (inner, read[1], given, *stride), {}
    if bias is not None and shift is not None:
        set_tensor(network, str(bias.target), network.tensor(bias) + shift)
