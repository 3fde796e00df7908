"""Operators that OpenVINO's frontend cannot read as captured, rewritten in a form that it reads.

Operators handled here need neither a second export nor its decompositions, which cost seconds per compilation.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from tersor.network.network import argument, aten, op_name

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
# Operators that the frontend reads as captured.
_PLAIN = frozenset(
    "linear embedding add sub mul div sigmoid tanh relu softmax sum mean select getitem stack cat unsqueeze slice "
    "zeros zeros_like sym_size full argmax arange index fake_quantize quantize_rows dequantize avg_pool2d hardtanh "
    "clamp hardswish hardsigmoid silu gelu leaky_relu elu permute transpose view expand pixel_shuffle "
    "scaled_dot_product_attention upsample_nearest2d upsample_bilinear2d".split()
)
# Operators that return their value as the first of several.
FIRST = (aten.max_pool2d_with_indices.default, aten.native_layer_norm.default)


def spelled(node: fx.Node, batch: fx.Node | None) -> Call | None:
    """An operator in the form that the frontend reads; None if it reads only the operator's decomposition.

    Args:
        node: an operator of the network.
        batch: the node that holds the batch size, if the batch is dynamic.
    """
    name = op_name(node)
    if name == "flatten":
        return _flattened(node, batch)
    if name in _SPELLED:
        return _SPELLED[name](node)
    return (node.target, node.args, node.kwargs) if name in _PLAIN else None


def batch_size(graph: fx.Graph) -> fx.Node | None:
    """A new node with the batch size, read from the first input that has a batch, or None if no batch is dynamic."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    for node in inputs:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.ndim and not isinstance(value.shape[0], int):
            with graph.inserting_after(inputs[-1]):
                size = graph.call_function(aten.sym_size.int, (node, 0))
            size.meta["val"] = value.shape[0]
            return size
    return None


def _each(node: fx.Node, dims: int, position: int, name: str, default: int) -> list[int]:
    """An argument of a convolution for each of its dimensions; one value stands for all."""
    values = list(argument(node, position, name, [default]))
    return values * dims if len(values) == 1 else values


def _convolution(node: fx.Node) -> Call | None:
    dims = int(op_name(node)[4])
    if node.target is not getattr(aten, f"conv{dims}d").default:  # "same" and "valid" as words
        return None

    steps = (_each(node, dims, 3, "stride", 1), _each(node, dims, 4, "padding", 0), _each(node, dims, 5, "dilation", 1))
    rest = (False, [0] * dims, argument(node, 6, "groups", 1))
    return aten.convolution.default, (*node.args[:2], argument(node, 2, "bias"), *steps, *rest), {}


def _transposed(node: fx.Node) -> Call:
    dims = int(op_name(node)[len("conv_transpose")])

    steps = (_each(node, dims, 3, "stride", 1), _each(node, dims, 4, "padding", 0), _each(node, dims, 7, "dilation", 1))
    rest = (True, _each(node, dims, 5, "output_padding", 0), argument(node, 6, "groups", 1))
    return aten.convolution.default, (*node.args[:2], argument(node, 2, "bias"), *steps, *rest), {}


def _padded(node: fx.Node) -> Call | None:
    if argument(node, 2, "mode", "constant") != "constant":
        return None
    return aten.constant_pad_nd.default, (*node.args[:2], float(argument(node, 3, "value") or 0.0)), {}


def _pooled(node: fx.Node) -> Call | None:
    """Global average pooling as a mean over all positions; None for larger output sizes."""
    sizes: Any = node.args[1]
    return (aten.mean.dim, (node.args[0], [-1, -2], True), {}) if list(sizes) == [1, 1] else None


def _split(node: fx.Node) -> Call | None:
    """A split into equal parts, as captured; None otherwise."""
    source: Any = node.args[0]
    size, length = node.args[1], source.meta["val"].shape[argument(node, 2, "dim", 0)]
    equal = isinstance(size, int) and isinstance(length, int) and length % size == 0
    return (node.target, node.args, node.kwargs) if equal else None


def _flattened(node: fx.Node, batch: fx.Node | None) -> Call | None:
    """A flatten of all dimensions but the batch; None for other dimensions, or if the first is not the batch."""
    source: Any = node.args[0]
    value = source.meta.get("val")
    if not isinstance(value, Tensor) or value.ndim < 2:
        return None
    first, *rest = value.shape
    start, end = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
    if (start, end % value.ndim) != (1, value.ndim - 1) or not all(isinstance(n, int) for n in rest):
        return None
    if not isinstance(first, int):
        if batch is None or str(batch.meta["val"]) != str(first):
            return None
        first = batch
    return aten.view.default, (source, [first, math.prod(rest)]), {}


def _normalized(node: fx.Node) -> Call:
    """A layer norm over its last dimensions, which also returns mean and deviation."""
    weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias")
    return aten.native_layer_norm.default, (*node.args[:2], weight, bias, argument(node, 4, "eps", 1e-5)), {}


_SPELLED: dict[str, Callable[[fx.Node], Call | None]] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "conv_transpose1d": _transposed,
    "conv_transpose2d": _transposed,
    "conv_transpose3d": _transposed,
    "pad": _padded,
    "max_pool2d": lambda node: (aten.max_pool2d_with_indices.default, node.args, node.kwargs),
    "relu6": lambda node: (aten.hardtanh.default, (node.args[0], 0.0, 6.0), {}),
    "reshape": lambda node: (aten.view.default, node.args, node.kwargs),
    "layer_norm": _normalized,
    "adaptive_avg_pool2d": _pooled,
    "split": _split,
}
