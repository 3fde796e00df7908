"""Whether what goes is zero already in the network that has zeros in its place: then sums and norms do not miss it."""

from collections.abc import Callable

from torch import fx

from tersor.network.groups.flow import Flow, shape_of
from tersor.network.groups.shapes import MOVED, VIEWS, moved_order, segments
from tersor.network.network import CONVOLUTIONS, TRANSPOSED, argument, op_name

Rule = Callable[[Flow, fx.Node, int], bool]


def vanishes(flow: Flow, node: object, dim: int) -> bool:
    """Whether the value is zero at all positions of a dimension that can go, as far as this is known."""
    if not isinstance(node, fx.Node):
        return False
    if node.op != "call_function":
        return True  # tensors of the network are zero there, and inputs lose nothing
    value = flow.values.get(node)
    if not isinstance(value, tuple):
        return op_name(node) in _SAME and vanishes(flow, node.args[0], dim)
    dim %= len(value)
    if flow.is_solid(value[dim]):
        return True
    rule = _RULES.get(op_name(node))
    return rule is not None and rule(flow, node, dim)


def _same(flow: Flow, node: fx.Node, dim: int) -> bool:
    return vanishes(flow, node.args[0], dim)


def _times(flow: Flow, node: fx.Node, dim: int) -> bool:
    """A product is zero where one factor is."""
    return any(_operand(flow, node, arg, dim) for arg in node.args[:2])


def _plus(flow: Flow, node: fx.Node, dim: int) -> bool:
    return all(_operand(flow, node, arg, dim) for arg in node.args[:2])


def _over(flow: Flow, node: fx.Node, dim: int) -> bool:
    return _operand(flow, node, node.args[0], dim)


def _power(flow: Flow, node: fx.Node, dim: int) -> bool:
    exponent = node.args[1]
    return isinstance(exponent, int | float) and exponent > 0 and _over(flow, node, dim)


def _bounded(flow: Flow, node: fx.Node, dim: int) -> bool:
    low, high = (node.args[k] if len(node.args) > k else None for k in (1, 2))
    within = (low is None or isinstance(low, int | float)) and (high is None or isinstance(high, int | float))
    return within and (low or 0) <= 0 <= (high or 0) and _over(flow, node, dim)  # type: ignore[operator]


def _operand(flow: Flow, node: fx.Node, arg: object, dim: int) -> bool:
    """Whether an operand of an elementwise operator is zero there, by itself and not by repetition."""
    if not isinstance(arg, fx.Node):
        return False
    found = flow.of(arg)
    own = dim - len(shape_of(node)) + len(found) if found is not None else -1
    return found is not None and own >= 0 and len(found[own]) > 1 and vanishes(flow, arg, own)


def _layer(flow: Flow, node: fx.Node, dim: int) -> bool:
    """Outputs whose row of the weight is zero, and whose bias is."""
    weight, bias, rank = node.args[1], argument(node, 2, "bias"), len(shape_of(node))
    spatial = len(shape_of(weight)) - 2 if node.target in (*CONVOLUTIONS, *TRANSPOSED) else 0  # type: ignore[arg-type]
    at = 1 if node.target in TRANSPOSED else 0
    return dim == rank - 1 - spatial and vanishes(flow, weight, at) and (bias is None or vanishes(flow, bias, 0))


def _product(flow: Flow, node: fx.Node, dim: int) -> bool:
    a, b = node.args[:2]
    ranks = [len(flow.of(v) or ()) for v in (a, b)]
    if min(ranks) < 2:
        return False
    last = len(shape_of(node)) - 1
    if dim == last:
        return vanishes(flow, b, -1)
    if dim == last - 1:
        return vanishes(flow, a, -2)
    return _times(flow, node, dim) if ranks[0] == ranks[1] == last + 1 else False


def _attention(flow: Flow, node: fx.Node, dim: int) -> bool:
    return dim != len(shape_of(node)) - 2 and vanishes(flow, argument(node, 2, "value"), dim)


def _norm(flow: Flow, node: fx.Node, dim: int) -> bool:
    """A norm with a scale and a shift for each channel."""
    scaled = [a for a in node.args[1:4] if isinstance(a, fx.Node) and a.op == "get_attr"]
    return dim == 1 and len(scaled) >= 2


def _cat(flow: Flow, node: fx.Node, dim: int) -> bool:
    return all(vanishes(flow, part, dim) for part in node.args[0])  # type: ignore[union-attr]


def _moved(flow: Flow, node: fx.Node, dim: int) -> bool:
    return vanishes(flow, node.args[0], moved_order(node, len(shape_of(node)))[dim])


def _view(flow: Flow, node: fx.Node, dim: int) -> bool:
    x = flow.of(node.args[0])
    if x is None:
        return False
    for sources, targets in segments([len(c) for c in x], shape_of(node)):
        if dim in targets:
            return all(vanishes(flow, node.args[0], d) for d in sources if len(x[d]) > 1)
    return False


def _getitem(flow: Flow, node: fx.Node, dim: int) -> bool:
    """A part of what split, chunk and the like return."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return op_name(source) in _PARTS and vanishes(flow, source.args[0], dim)


_PARTS = "split chunk split_with_sizes tensor_split".split()
_SAME = (
    "relu relu6 leaky_relu elu selu celu gelu silu mish tanh hardswish sin asin atan sinh expm1 erf abs neg sqrt "
    "square sign round floor ceil trunc tan asinh dropout feature_dropout contiguous clone detach alias to type_as "
    "slice narrow max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_bilinear2d softsign "
    "upsample_linear1d upsample_bicubic2d prelu roll flip cumsum"
).split()
_TABLE: dict[str, Rule] = {
    " ".join(_SAME): _same,
    "mul": _times,
    "add sub maximum minimum": _plus,
    "div": _over,
    "pow": _power,
    "hardtanh clamp": _bounded,
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d": _layer,
    "matmul bmm mm": _product,
    "scaled_dot_product_attention": _attention,
    "batch_norm instance_norm group_norm": _norm,
    "cat": _cat,
    " ".join(MOVED): _moved,
    " ".join(VIEWS) + " squeeze unsqueeze": _view,
    "getitem": _getitem,
    "embedding": lambda _flow, _node, _dim: True,
}
_RULES: dict[str, Rule] = {name: rule for names, rule in _TABLE.items() for name in names.split()}
