"""RULES: for each operator, by its short name, how the cells of its results follow from those of its inputs.

A rule joins and freezes cells and returns those of the result; None where it does not know this form of the operator.
Operators that PyTorch marks as pointwise need no entry. What has none freezes all that it touches.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from tersor.network.groups import layers, picks, shapes
from tersor.network.groups.atoms import solid
from tersor.network.groups.flow import Flow, Value, number, shape_of
from tersor.network.groups.zeros import vanishes
from tersor.network.network import argument, op_name

Rule = Callable[[Flow, fx.Node], Any]


def elementwise(flow: Flow, node: fx.Node) -> Value | None:
    """One result for each position; dimensions of size 1 are repeated."""
    values = [v for v in map(flow.of, node.all_input_nodes) if v is not None]
    return flow.joined(node, values) if values else None


def same(flow: Flow, node: fx.Node) -> Value | None:
    """What returns its first argument's positions."""
    return flow.of(node.args[0])


def created(flow: Flow, node: fx.Node) -> Value | None:
    """Equal values of sizes that the graph gives: they are made smaller where they are needed smaller."""
    return tuple(flow.atoms.fresh(n) if isinstance(s, int) and n > 1 else solid(n)
                 for s, n in zip(node.meta["val"].shape, shape_of(node), strict=True))  # fmt: skip


def over(flow: Flow, node: fx.Node) -> Any:
    """What reads all positions of some dimensions, which are then fixed: mean, sum, softmax, sort, cumsum."""
    x, name = flow.of(node.args[0]), op_name(node)
    if x is None:
        return None
    dims = argument(node, 2 if name in _SECOND else 1, "dim", _DIMS.get(name))
    if dims is None or not isinstance(dims, int | list | tuple) or isinstance(dims, bool):
        dims = range(len(x))
    dims = {d % max(1, len(x)) for d in ([dims] if isinstance(dims, int) else dims or range(len(x)))}
    for d in dims:
        if d < len(x) and not (_sums(node) and vanishes(flow, node.args[0], d)):
            flow.freeze(x[d], f"{name} reads all of them")
    value = node.meta["val"]
    if isinstance(value, tuple | list):
        return [_fitted(x, dims, v.shape) for v in value]
    return _fitted(x, dims, value.shape)


def _sums(node: fx.Node) -> bool:
    """Whether zeros do not count in what it reads."""
    return op_name(node) == "sum" or (op_name(node) in _NORMS and (argument(node, 1, "ord", 2) or 2) > 0)


def extreme(flow: Flow, node: fx.Node) -> Any:
    """max, min: of two values, or over the positions of one."""
    return elementwise(flow, node) if isinstance(argument(node, 1, "other"), fx.Node) else over(flow, node)


def _fitted(x: Value, dims: set[int], shape: Any) -> Value:
    """The dimensions that are left; those that were read have another size, or are gone."""
    left = x if len(shape) == len(x) else tuple(c for d, c in enumerate(x) if d not in dims)
    return tuple(c if len(c) == number(n) else solid(number(n)) for c, n in zip(left, shape, strict=True))


def places(flow: Flow, node: fx.Node) -> Any:
    """Pools and resampling: everything behind the channels is read as places."""
    x = flow.of(node.args[0])
    if x is None:
        return None
    name = op_name(node)
    count = next((int(c) for c in reversed(name) if c.isdigit()), 1)
    for cells in x[-count:]:
        flow.freeze(cells, f"{name} reads them as places")
    value = node.meta["val"]
    several = isinstance(value, tuple | list)
    found = [(*x[:-count], *map(solid, map(number, v.shape[-count:]))) for v in (value if several else [value])]
    return found if several else found[0]


def turned(flow: Flow, node: fx.Node) -> Value | None:
    """roll, flip: the turned dimensions are fixed."""
    x, dims = flow.of(node.args[0]), argument(node, 2 if op_name(node) == "roll" else 1, "dims", ())
    if x is None:
        return None
    for d in dims or range(len(x)):
        flow.freeze(x[d], f"{op_name(node)} turns them")
    return x


def triangle(flow: Flow, node: fx.Node) -> Value | None:
    """tril, triu: rows and columns are fixed."""
    x = flow.of(node.args[0])
    for cells in (x or ())[-2:]:
        flow.freeze(cells, f"{op_name(node)} tells them apart")
    return x


_ELEMENTWISE = (
    "add sub mul div pow dropout feature_dropout alpha_dropout hardswish to where masked_fill floor_divide log_sigmoid "
    "__and__ __or__ __xor__ bitwise_not logical_not type_as _to_copy rrelu copy expm1 maximum minimum complex polar "
    "real imag angle conj conj_physical resolve_conj"
)
_SAME = "contiguous clone detach alias lift_fresh lift_fresh_copy zero fill full_like zeros_like ones_like empty_like"
_OVER = (
    "mean sum amax amin var std prod norm linalg_vector_norm any all logsumexp softmax log_softmax _softmax "
    "_log_softmax cumsum cumprod sort topk argmax argmin argsort median normalize diff kthvalue "
)
_FOURIER = {f"fft_{kind}{count}": dims for kind in "fft ifft rfft irfft hfft ihfft".split()
            for count, dims in (("", (-1,)), ("2", (-2, -1)), ("n", None))}  # fmt: skip
_SECOND = (*"topk kthvalue norm linalg_vector_norm renorm diff".split(), *_FOURIER)  # whose dimension comes third
_NORMS = ("norm", "linalg_vector_norm")
_DIMS = {"sort": -1, "topk": -1, "argsort": -1, "kthvalue": -1, "diff": -1} | _FOURIER
_PLACES = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d max_pool2d_with_indices upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d "
    "upsample_trilinear3d reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"
)
_TABLE: dict[str, Rule] = {
    _ELEMENTWISE: elementwise,
    _SAME: same,
    "zeros ones full empty new_zeros new_ones new_full new_empty": created,
    _OVER + " ".join(_FOURIER): over,
    "min max": extreme,
    _PLACES: places,
    " ".join(shapes.VIEWS): shapes.view,
    " ".join(shapes.MOVED): shapes.moved,
    "expand expand_as broadcast_to": shapes.expand,
    "repeat tile": shapes.repeat,
    "view_as_real": shapes.view_as_real,
    "view_as_complex": shapes.view_as_complex,
    "repeat_interleave": shapes.repeat_interleave,
    "squeeze unsqueeze": shapes.squeeze,
    "slice narrow select": shapes.slice_,
    "split chunk split_with_sizes tensor_split": shapes.pieces,
    "unbind": shapes.unbind,
    "cat concat": shapes.cat,
    "stack": shapes.stack,
    "getitem": shapes.getitem,
    "pad constant_pad_nd": shapes.pad,
    "pixel_shuffle": shapes.pixel_shuffle,
    "pixel_unshuffle": shapes.pixel_unshuffle,
    "linear": layers.linear,
    "conv1d conv2d conv3d": layers.convolution,
    "conv_transpose1d conv_transpose2d conv_transpose3d": layers.transposed,
    "embedding": layers.embedding,
    "embedding_bag _embedding_bag_forward_only": layers.embedding_bag,
    "bilinear": layers.bilinear,
    "matmul mm bmm mv dot": layers.product,
    "addmm baddbmm": layers.sum_and_product,
    "einsum": layers.einsum,
    "scaled_dot_product_attention": layers.attention,
    "batch_norm instance_norm prelu": layers.channel_norm,
    "group_norm": layers.group_norm,
    "layer_norm rms_norm": layers.layer_norm,
    "glu": layers.glu,
    "lstm gru rnn_tanh rnn_relu": layers.recurrent,
    "grouped_mm_fallback _grouped_mm": layers.grouped_mm,
    "index": picks.index,
    "index_put": picks.index_put,
    "index_select": picks.index_select,
    "index_add index_copy": picks.index_add,
    "gather": picks.gather,
    "scatter scatter_add scatter_reduce": picks.scatter,
    "unfold": picks.unfold,
    "im2col": picks.im2col,
    "col2im": picks.col2im,
    "roll flip": turned,
    "tril triu": triangle,
}  # fmt: skip
RULES: dict[str, Rule] = {name: rule for names, rule in _TABLE.items() for name in names.split()}


def rule_of(node: fx.Node) -> Rule | None:
    """The rule of an operator, or None."""
    found = RULES.get(op_name(node))
    if found is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return elementwise
    return found
