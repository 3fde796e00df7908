"""Rules of operators with weights, products of two values, norms, and recurrent layers."""

from typing import Any

import numpy as np
from torch import fx

from tersor.network.groups.atoms import Cells, solid
from tersor.network.groups.flow import Flow, Value, shape_of
from tersor.network.groups.zeros import vanishes
from tersor.network.network import argument, groups_of, op_name, title

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def linear(flow: Flow, node: fx.Node) -> Value:
    """Inputs go with the weight's columns; its rows, with the bias, are new."""
    x, weight = _two(flow, node)
    flow.contract(node, x[-1], weight[1])
    _with(flow, node, weight[0], 2, "bias")
    return (*x[:-1], weight[0])


def convolution(flow: Flow, node: fx.Node) -> Value:
    """In groups, the same inputs of each go, and the same outputs; or whole groups."""
    x, weight = _two(flow, node)
    groups, axis = groups_of(node), len(x) - len(weight) + 1
    inputs = x[axis]
    for cells in weight[2:]:
        flow.freeze(cells, "the size of a kernel is fixed")
    if groups == 1:
        flow.contract(node, inputs, weight[1])
    else:
        outer, inner = flow.atoms.split(inputs, groups, len(inputs) // groups)
        own, _ = flow.atoms.split(weight[0], groups, len(weight[0]) // groups)
        flow.join(node, outer, own)
        flow.contract(node, inner, weight[1])
        flow.parts[node, "groups"] = own
    _with(flow, node, weight[0], 2, "bias")
    return _spatial(flow, node, x, axis, weight[0])


def transposed(flow: Flow, node: fx.Node) -> Value:
    """A transposed convolution, whose weight has the inputs first."""
    x, weight = _two(flow, node)
    groups, axis = groups_of(node), len(x) - len(weight) + 1
    for cells in weight[2:]:
        flow.freeze(cells, "the size of a kernel is fixed")
    flow.contract(node, x[axis], weight[0])
    outputs = weight[1]
    if groups != 1:
        outer, _ = flow.atoms.split(weight[0], groups, len(weight[0]) // groups)
        flow.parts[node, "groups"] = outer
        outputs = flow.atoms.product(outer, weight[1])
    _with(flow, node, outputs, 2, "bias")
    return _spatial(flow, node, x, axis, outputs)


def _spatial(flow: Flow, node: fx.Node, x: Value, axis: int, channels: Cells) -> Value:
    """An output with these channels, and places that never go."""
    for cells in x[axis + 1 :]:
        flow.freeze(cells, f"{op_name(node)} reads them as places")
    return (*x[:axis], channels, *map(solid, shape_of(node)[axis + 1 :]))


def embedding(flow: Flow, node: fx.Node) -> Value:
    """Columns of the table; its rows are chosen by number."""
    table, ids = flow.given(node, 0, "weight"), flow.given(node, 1, "indices")
    assert table is not None and ids is not None
    flow.freeze(table[0], "they are chosen by number")
    return (*ids, table[1])


def embedding_bag(flow: Flow, node: fx.Node) -> list[Value | None]:
    """embedding_bag: sums or means of the table's rows, for each bag."""
    table, value = flow.of(node.args[0]), flow.solids(node)
    assert table is not None
    flow.freeze(table[0], "they are chosen by number")
    return [(value[0][0], table[1]), *value[1:]]


def bilinear(flow: Flow, node: fx.Node) -> Value:
    """bilinear: for each output a matrix between both inputs."""
    (a, weight), b = _two_of(flow, node, 0, 2), flow.of(node.args[1])
    assert b is not None
    flow.contract(node, a[-1], weight[1])
    flow.contract(node, b[-1], weight[2])
    _with(flow, node, weight[0], 3, "bias")
    return (*flow.joined(node, (a[:-1], b[:-1])), weight[0])


def product(flow: Flow, node: fx.Node) -> Value:
    """matmul, bmm, mm, mv, dot: the contracted dimensions go together."""
    return _product(flow, node, *(argument(node, k, "") for k in (0, 1)))


def _product(flow: Flow, node: fx.Node, one: fx.Node, other: fx.Node) -> Value:
    a, b = flow.of(one), flow.of(other)
    assert a is not None and b is not None
    _doubt(flow, node, a[-1], [(one, -1), (other, -2 if len(b) > 1 else 0)])
    if len(b) == 1:
        flow.contract(node, a[-1], b[0])
        return a[:-1]
    flow.contract(node, a[-1], b[-2])  # type: ignore[misc]
    if len(a) == 1:
        return (*b[:-2], *b[-1:])
    return (*flow.joined(node, (a[:-2], b[:-2])), *a[-2:-1], *b[-1:])


def _doubt(flow: Flow, node: fx.Node, cells: Cells, factors: list[tuple[Any, int]]) -> None:
    """Note products whose factors may not be zero where their layers are."""
    if not any(vanishes(flow, factor, dim) for factor, dim in factors):
        flow.doubts.append((cells, f"{title(node)} sums products of them that are not zero where their layers are"))


def sum_and_product(flow: Flow, node: fx.Node) -> Value:
    """addmm, baddbmm: a product added to the first argument."""
    first, one, other = (argument(node, k, "") for k in (0, 1, 2))
    added = flow.of(first)
    assert added is not None
    return flow.joined(node, (_product(flow, node, one, other), added))


def einsum(flow: Flow, node: fx.Node) -> Value | None:
    """Dimensions of one letter go together."""
    text, operands = argument(node, 0, "equation"), [flow.of(a) for a in argument(node, 1, "tensors")]
    if any(o is None for o in operands):
        return None
    values: list[Value] = operands  # type: ignore[assignment]
    inputs, right = _letters(text.replace(" ", ""), [len(v) for v in values])
    letters = dict[str, Cells]()
    for names, value in zip(inputs, values, strict=True):
        for letter, cells in zip(names, value, strict=True):
            if letter in letters and len(cells) > 1 < len(letters[letter]):
                (flow.join if letter in right else flow.contract)(node, letters[letter], cells)
            if len(letters.get(letter, ())) <= 1:
                letters[letter] = cells
    for letter in letters.keys() - set(right):
        factors = zip(argument(node, 1, "tensors"), inputs, strict=True)
        _doubt(flow, node, letters[letter], [(x, names.index(letter)) for x, names in factors if letter in names])
    return tuple(letters[k] for k in right)


def _letters(text: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, with some for dimensions that dots stand for.

    >>> _letters("...ij,j->...i", [4, 1])
    (['ZYij', 'j'], 'ZYi')
    """
    left, arrow, right = text.partition("->")
    names = left.split(",")
    free = [c for c in "ZYXWVUTSRQPONMLKJIHGFEDCBA" if c not in text]
    counts = [rank - len(n) + 3 for n, rank in zip(names, ranks, strict=True) if "..." in n]
    most = max(counts, default=0)
    dots = "".join(free[:most])
    every = [n.replace("...", dots[most - (rank - len(n) + 3) :]) if "..." in n else n
             for n, rank in zip(names, ranks, strict=True)]  # fmt: skip
    if not arrow:
        single = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        right = ("..." if most else "") + "".join(single)
    return every, right.replace("...", dots)


def attention(flow: Flow, node: fx.Node) -> Value:
    """scaled_dot_product_attention: heads of queries, keys and values go together, channels of queries and keys."""
    q, k, v = (flow.of(argument(node, i, n)) for i, n in enumerate(("query", "key", "value")))
    assert q is not None and k is not None and v is not None
    if argument(node, 7, "enable_gqa", False) and len(q[-3]) != len(k[-3]):
        times = len(q[-3]) // len(k[-3])
        k, v = ((*t[:-3], np.repeat(t[-3], times), *t[-2:]) for t in (k, v))
    flow.contract(node, q[-1], k[-1])
    flow.join(node, k[-2], v[-2])
    batch = flow.joined(node, (q[:-2], k[:-2], v[:-2]))
    mask = flow.given(node, 3, "attn_mask")
    if mask is not None:
        flow.joined(node, ((*batch, q[-2], k[-2]), mask))
    for cells in (q[-2], k[-2]):
        flow.freeze(cells, "attention weighs them against each other")
    return (*batch, q[-2], v[-1])


def channel_norm(flow: Flow, node: fx.Node) -> Value:
    """batch_norm, instance_norm, prelu: a number for each channel."""
    x = flow.of(node.args[0])
    assert x is not None
    for source in node.all_input_nodes[1:]:
        own = flow.of(source)
        if own is not None and len(own) == 1 and len(own[0]) > 1:
            flow.join(node, x[1 if len(x) > 1 else 0], own[0])
    return x


def group_norm(flow: Flow, node: fx.Node) -> Value:
    """Whole groups go: within one, the mean would be another."""
    x, groups = flow.of(node.args[0]), argument(node, 1, "num_groups")
    assert x is not None
    outer, inner = flow.atoms.split(x[1], groups, len(x[1]) // groups)
    flow.freeze(inner, "group_norm takes the mean of a group")
    flow.parts[node, "groups"] = outer
    for position, name in ((2, "weight"), (3, "bias")):
        _with(flow, node, x[1], position, name)
    return x


def layer_norm(flow: Flow, node: fx.Node) -> Value:
    """layer_norm, rms_norm: what they take the mean of is fixed."""
    x = flow.of(node.args[0])
    assert x is not None
    count = len(argument(node, 1, "normalized_shape"))
    for source in node.all_input_nodes:
        for cells in (flow.of(source) or ())[-count:]:
            flow.freeze(cells, f"{op_name(node)} takes the mean of them")
    return x


def glu(flow: Flow, node: fx.Node) -> Value:
    """The first half times the second's sigmoid."""
    x, dim = flow.of(node.args[0]), argument(node, 1, "dim", -1)
    assert x is not None
    dim %= len(x)
    half = len(x[dim]) // 2
    flow.join(node, x[dim][:half], x[dim][half:])
    return (*x[:dim], x[dim][:half], *x[dim + 1 :])


def recurrent(flow: Flow, node: fx.Node) -> list[Value | None] | None:
    """lstm, gru, rnn: the hidden units of all layers and directions share one size, so they go together."""
    if not isinstance(argument(node, 2, ""), list | tuple):
        return None  # packed sequences
    x, states, names = flow.of(node.args[0]), argument(node, 1, "hx"), argument(node, 2, "params")
    biases, layers, both, first = (argument(node, k, "") for k in (3, 4, 7, 8))
    gates, directions = _GATES[op_name(node)], 2 if both else 1
    states = list(states) if isinstance(states, list | tuple) else [states]
    params = [flow.of(p) for p in names]
    per = 4 if biases else 2
    if x is None or len(params) != layers * directions * per:
        return None  # projections
    hidden = flow.atoms.fresh(len(flow.of(states[0])[-1]))  # type: ignore[index]
    inputs = x[-1]
    for layer in range(layers):
        for direction in range(directions):
            start = (layer * directions + direction) * per
            own = params[start : start + per]
            for vector in own:
                assert vector is not None
                flow.join(node, vector[0], np.tile(hidden, gates))
            flow.contract(node, own[0][1], inputs)  # type: ignore[index]
            flow.contract(node, own[1][1], hidden)  # type: ignore[index]
        inputs = np.tile(hidden, directions)
    for state in states:
        value = flow.of(state)
        assert value is not None
        flow.join(node, value[-1], hidden)
    batch = x[0] if first else x[1]
    last = (solid(layers * directions), batch, hidden)
    return [(x[0], x[1], inputs), *[last] * len(states)]


def grouped_mm(flow: Flow, node: fx.Node) -> Value:
    """A product for each expert, of the tokens that chose it; experts never go."""
    x, weight = _two(flow, node)
    flow.freeze(weight[0], "experts are chosen by number")
    flow.contract(node, x[-1], weight[-2])
    return (*x[:-1], weight[-1])


def _two(flow: Flow, node: fx.Node) -> tuple[Value, Value]:
    return _two_of(flow, node, 0, 1)


def _two_of(flow: Flow, node: fx.Node, one: int, other: int) -> tuple[Value, Value]:
    x, weight = flow.of(node.args[one]), flow.of(node.args[other])
    assert x is not None and weight is not None
    return x, weight


def _with(flow: Flow, node: fx.Node, cells: Cells, position: int, name: str) -> None:
    """A vector, if it is given, goes with these cells."""
    own: Any = flow.given(node, position, name)
    if own is not None:
        flow.join(node, cells, own[0])
