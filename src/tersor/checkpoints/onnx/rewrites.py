"""Rewrites of an ONNX graph that allow its runtime to compute in integers, without changing an output code."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tersor.checkpoints.onnx.graph import DOMAIN

ABSORBED = "absorbed"
_END = 2**31 - 1
_MOVES = frozenset(
    "MaxPool Reshape Flatten Transpose Squeeze Unsqueeze Slice Split Gather Expand Identity DepthToSpace "
    "SpaceToDepth".split()
)


@dataclass(frozen=True)
class Quantizer:
    """The parameters of a fake_quantize node: scale and zero point as arrays, and the code range."""

    scale: np.ndarray
    zero_point: np.ndarray
    low: int
    high: int
    block: int

    def same(self, other: "Quantizer") -> bool:
        """Whether both have the same parameters."""
        pairs = ((self.scale, other.scale), (self.zero_point, other.zero_point))
        ends = (self.low, self.high, self.block) == (other.low, other.high, other.block)
        return ends and all(a.shape == b.shape and bool((a == b).all()) for a, b in pairs)

    def code(self, x: float) -> float:
        """The code of one value (per-tensor only), before clipping."""
        return float(np.round(np.float32(x) / np.float32(self.scale.item())) + self.zero_point.item())


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant value, or None."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def quantizer(node: ir.Node | None) -> Quantizer | None:
    """The parameters of a fake_quantize node, or None for any other node."""
    if node is None or (node.domain, node.op_type) != (DOMAIN, "fake_quantize"):
        return None
    scale, zero_point = (constant(v) for v in node.inputs[1:3])
    assert scale is not None and zero_point is not None
    return Quantizer(scale, zero_point, *(node.attributes[k].as_int() for k in ("low", "high", "block")))


def absorb(node: ir.Node | None, name: str | None) -> None:
    """Record on a node that it also does the work of another, for the audit of executed operators."""
    if node is not None and name:
        known = node.metadata_props.get(ABSORBED)
        node.metadata_props[ABSORBED] = f"{known} {name}" if known else name


def bypass(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node; the readers of its output read its first input instead."""
    source = node.inputs[0]
    assert source is not None
    ir.convenience.replace_all_uses_with(node.outputs[0], source)
    graph.remove(node, safe=True)


def replace_node(graph: ir.Graph, node: ir.Node, chain: list[ir.Node]) -> None:
    """Replace a node by a chain of nodes, whose last value takes over its output's name and readers."""
    last, value = chain[-1].outputs[0], node.outputs[0]
    for new in chain[:-1]:
        new.outputs[0].name = str(new.name)
    last.name, last.type, last.shape = value.name, value.type, value.shape
    graph.insert_before(node, chain)
    ir.convenience.replace_all_uses_with(value, last, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def is_output(value: ir.Value) -> bool:
    """Whether the value is an output of the graph."""
    return value.is_graph_output()


def drop_no_ops(graph: ir.Graph) -> None:
    """Remove slices of everything, and quantizers that repeat the one before them."""
    for node in list(graph):
        if is_output(node.outputs[0]):
            continue
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Slice" and _takes_all(node):
            bypass(graph, node)
        elif (target := quantizer(node)) is not None and source is not None:
            before = quantizer(source.producer())
            if before is not None and target.same(before):
                bypass(graph, node)


def _takes_all(node: ir.Node) -> bool:
    starts, ends = constant(node.inputs[1]), constant(node.inputs[2])
    steps = constant(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
    if starts is None or ends is None or steps is None:
        return False
    return bool((starts == 0).all() and (ends >= _END).all() and (steps == 1).all())


def fold_pads(graph: ir.Graph) -> None:
    """Fold zero padding, also asymmetric, into the convolutions that read it.

    A quantizer between the two is dropped if the one before the padding has the same parameters, in which 0 is exact.
    """
    for conv in [n for n in graph if n.op_type == "Conv"]:
        source = conv.inputs[0]
        between = source.producer() if source is not None else None
        pad = between
        if (target := quantizer(between)) is not None:
            assert between is not None and between.inputs[0] is not None
            pad = between.inputs[0].producer()
            before = quantizer(_producer(pad)) if pad is not None and pad.op_type == "Pad" else None
            if before is None or not target.same(before):
                continue
        if pad is None or pad.op_type != "Pad" or (pads := _zero_padding(pad)) is None:
            continue
        spatial = len(pads) // 2 - 2
        begin, end = pads[: spatial + 2], pads[spatial + 2 :]
        if any(begin[:2]) or any(end[:2]) or min(pads) < 0:
            continue
        own_pads = conv.attributes["pads"].as_ints() if "pads" in conv.attributes else [0] * (2 * spatial)
        extra = [*begin[2:], *end[2:]]
        conv.attributes["pads"] = ir.AttrInt64s(
            "pads", [int(a + b) for a, b in zip(own_pads, extra, strict=True)]
        )
        conv.replace_input_with(0, pad.inputs[0])
        absorb(conv, pad.name)
    drop_dead(graph)


def _producer(node: ir.Node) -> ir.Node | None:
    source = node.inputs[0]
    return source.producer() if source is not None else None


def _zero_padding(pad: ir.Node) -> list[int] | None:
    mode = pad.attributes["mode"].as_string() if "mode" in pad.attributes else "constant"
    widths = constant(pad.inputs[1])
    given = pad.inputs[2] if len(pad.inputs) > 2 else None
    value = constant(given) if given is not None else np.zeros(())
    has_axes = len(pad.inputs) > 3 and pad.inputs[3] is not None
    if mode != "constant" or widths is None or value is None or has_axes or np.any(value != 0):
        return None
    return [int(w) for w in widths]


def use_global_pooling(graph: ir.Graph) -> None:
    """Replace a mean over all spatial dimensions by GlobalAveragePool, which runtimes implement in int8.

    If the mean drops those dimensions, a Flatten follows, between two copies of the quantizer that reads the mean.
    """
    for node in [n for n in graph if n.op_type == "ReduceMean"]:
        source, axes = node.inputs[0], constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if source is None or source.shape is None or axes is None:
            continue
        rank = len(source.shape)
        if rank < 3 or sorted(int(a) % rank for a in axes) != list(range(2, rank)):
            continue
        keep = "keepdims" not in node.attributes or bool(node.attributes["keepdims"].as_int())
        chain = [ir.node("GlobalAveragePool", [source], name=node.name)]
        if not keep:
            chain += _flatten(node, chain[0].outputs[0])
        value, last = node.outputs[0], chain[-1].outputs[0]
        last.name, last.type, last.shape = value.name, value.type, value.shape
        graph.insert_before(node, chain)
        ir.convenience.replace_all_uses_with(value, last, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        for k, new in enumerate(chain[:-1]):
            new.outputs[0].name, new.outputs[0].type = f"{node.name}/pooled{k or ''}", value.type


def _flatten(mean: ir.Node, pooled: ir.Value) -> list[ir.Node]:
    readers = mean.outputs[0].consumers()
    following = next((r for r in readers if quantizer(r) is not None), None)
    if following is None or len(readers) > 1:
        return [ir.node("Flatten", [pooled], {"axis": 1}, name=f"{mean.name}/Flatten")]
    name = f"{following.name}/pooled"
    inputs = [pooled, *following.inputs[1:]]
    first = ir.Node(DOMAIN, following.op_type, inputs, list(following.attributes.values()), name=name)
    return [first, ir.node("Flatten", [first.outputs[0]], {"axis": 1}, name=f"{mean.name}/Flatten")]


def propagate_quantizers(graph: ir.Graph) -> None:
    """Repeat the quantizer of an operator's input after the operator if it only moves or selects values.

    The values are already on that grid, so nothing changes; the operator can then run on the codes.
    """
    for node in list(graph):
        target = _shared_quantizer(node)
        if target is None:
            continue
        for value in node.outputs:
            readers = value.consumers()
            following = [q for q in map(quantizer, readers) if q is not None]
            if (
                is_output(value)
                or not readers
                or (len(following) == len(readers) and all(target.same(q) for q in following))
            ):
                continue
            source = _producer(node)
            assert source is not None
            inputs, attributes = [value, *source.inputs[1:]], list(source.attributes.values())
            copied = ir.Node(DOMAIN, source.op_type, inputs, attributes, name=f"{value.name}/moved")
            copied.outputs[0].name = f"{value.name}/moved"
            copied.outputs[0].type, copied.outputs[0].shape = value.type, value.shape
            graph.insert_after(node, copied)
            for reader, index in list(value.uses()):
                if reader is not copied:
                    reader.replace_input_with(index, copied.outputs[0])


def moved_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs whose values an operator only moves; empty for any other operator."""
    if node.op_type == "Concat":
        return [v for v in node.inputs if v is not None]
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else ""
    moves = {
        "Pad": mode in ("reflect", "edge") or _zero_padding(node) is not None
        if node.op_type == "Pad"
        else False,
        "Resize": mode == "nearest",
    }.get(node.op_type, node.op_type in _MOVES)
    return [v for v in node.inputs[:1] if v is not None] if moves and not node.domain else []


def _shared_quantizer(node: ir.Node) -> Quantizer | None:
    """The quantizer that all moved inputs share, if it has 8 bits and one scale, or None."""
    quantizers = [quantizer(v.producer()) for v in moved_inputs(node)]
    first = next(iter(quantizers), None)
    if first is None or first.scale.size != 1 or first.high - first.low > 255:
        return None
    return first if all(q is not None and q.same(first) for q in quantizers) else None


def drop_dead(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing reads."""
    for node in reversed(list(graph)):
        if all(not v.uses() and not is_output(v) for v in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not is_output(value):
            del graph.initializers[name]
