"""The precision that ONNX Runtime computes in, read from its optimized graph, and the reason for each fallback."""

import re
from dataclasses import dataclass, field
from typing import Any

from onnx import TensorProto

from tersor.checkpoints.onnx.rewrites import ABSORBED
from tersor.engines.base import Executed
from tersor.words import said

_INTEGER = re.compile(
    r"QLinear\w+|QGemm|ConvInteger|MatMulInteger\w*|DynamicQuantizeMatMul|DynamicQuantizeLSTM|(Deq|Q)uantizeLinear"
)
_PRECISION: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.UINT8: "int8",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "int16",
}
_HELPERS = ("QuantizeLinear", "DequantizeLinear", "Cast", "Constant")
# Arithmetic on shapes, not on values.
_SHAPES = ("Shape", "Size", "ConstantOfShape", "Constant")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_NEEDS_OUTPUT = ("Conv", "Add", "Mul", "GlobalAveragePool", "AveragePool", "Sigmoid", "Softmax", "LeakyRelu")


def account(written: Any, optimized: Any) -> list[Executed]:
    """One row for every operator of the optimized graph (both onnx.ModelProto).

    ONNX Runtime keeps the names of the nodes that it replaces, up to a suffix; nodes merged into a
    neighbour are found by following the values of the original graph.
    """
    graph = _Written.of(written)
    for k, node in enumerate(optimized.graph.node):
        node.name = node.name or f"/{node.op_type}_{k}"
    done = _done(graph, optimized)
    types = _types(optimized)
    rows = []
    for node in optimized.graph.node:
        read = next((types.get(i, 0) for i in node.input if i), 0)
        precision = "int8" if _INTEGER.fullmatch(node.op_type) else _PRECISION.get(read)
        if node.op_type in _SHAPES:
            continue
        if node.op_type == "MatMulNBits":
            bits = next((a.i for a in node.attribute if a.name == "bits"), 4)
            precision = "int4" if bits <= 4 else "int8"
        if precision is None:
            continue
        nodes = tuple(dict.fromkeys(done.get(node.name, ())))
        fell = nodes and precision in ("fp32", "fp16", "bf16")
        rows.append(
            Executed(node.name, node.op_type, precision, nodes, graph.reason(nodes[0]) if fell else None)
        )
    return rows


@dataclass(frozen=True)
class _Written:
    """The graph before optimization, traversable in both directions."""

    nodes: dict[str, Any] = field(default_factory=dict)
    maker: dict[str, Any] = field(default_factory=dict)
    readers: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> "_Written":
        graph = cls()
        for node in model.graph.node:
            graph.nodes[node.name] = node
            graph.maker.update((o, node) for o in node.output)
            for name in node.input:
                graph.readers.setdefault(name, []).append(node)
        return graph

    def operators(self) -> list[Any]:
        """The nodes that are named after an operator of the Network."""
        return [n for n in self.nodes.values() if n.op_type not in _HELPERS and "/" not in n.name]

    def reason(self, name: str) -> str | None:
        """Why an operator with integer kernels was computed in float; None if the operator has no such kernels."""
        node = self.nodes.get(name)
        if node is None or node.op_type not in (*_LAYERS, *_NEEDS_OUTPUT):
            return None
        kind = node.op_type

        def because(rule: str) -> str:
            return said("ONNX Runtime: {op} in FP32, {rule}", op=kind, rule=rule)

        inputs = 1 if kind in ("Conv", "GlobalAveragePool", "AveragePool") else 2
        if any(not self._quantized(i) for i in node.input[:inputs]):
            return because(said("since one of its inputs is not quantized"))
        if kind in _LAYERS and not self._quantized(node.input[1]):
            return because(said("since its weight is not quantized"))
        if kind == "ConvTranspose":
            return because(said("since it has no integer kernel"))
        behind = self.readers.get(node.output[0], [])
        quantizers = [r for r in behind if r.op_type == "QuantizeLinear"]
        if kind in _NEEDS_OUTPUT and not quantizers:
            others = ", ".join(sorted({r.op_type for r in behind})) or "the output"
            return because(said("since its value goes to {readers}, not directly to a quantizer", readers=others))
        if len(behind) > 1:
            return because(said("since its value has consumers other than one quantizer"))
        return because(said("no reason known"))

    def _quantized(self, value: str) -> bool:
        maker = self.maker.get(value)
        if maker is not None and maker.op_type == "Sum" and len(maker.input) == 1:  # guards a float operator
            maker = self.maker.get(maker.input[0])
        return maker is not None and maker.op_type == "DequantizeLinear"


def _done(graph: _Written, optimized: Any) -> dict[str, list[str]]:
    """The Network's operators that each executed node computes, by the node's name."""
    named = {_plain(n.name): n.name for n in optimized.graph.node}
    making = {_plain(o): n.name for n in optimized.graph.node for o in n.output}
    doer: dict[str, str | None] = {}
    pending = []
    for node in graph.operators():
        # In the blocked float layout (NCHWc), nodes are named after the value that they produce.
        doer[node.name] = named.get(node.name) or named.get(node.output[0]) or making.get(node.output[0])
        if doer[node.name] is None:
            pending.append(node)
    # A node found neither by name nor by value was merged: into its consumer, else into its producer.
    for node in reversed(pending):
        doer[node.name] = next(
            (doer[r.name] for r in graph.readers.get(node.output[0], []) if doer.get(r.name)), None
        )
    for node in pending:
        makers = [graph.maker[i].name for i in node.input if i in graph.maker]
        doer[node.name] = doer[node.name] or next((doer[m] for m in makers if doer.get(m)), None)
    kinds = {n.name: n.op_type for n in optimized.graph.node}
    done: dict[str, list[str]] = {}
    for node in graph.operators():
        if (executed := doer[node.name]) is not None:
            nodes = done.setdefault(executed, [])
            # List the operator that the executed one is named after first: Conv in QLinearConv.
            nodes.insert(0 if node.op_type in kinds[executed] else len(nodes), node.name)
    for node in graph.nodes.values():
        executed = doer.get(node.name) or named.get(node.name)
        absorbed = [e.value.split() for e in node.metadata_props if e.key == ABSORBED]
        if executed is not None and absorbed:
            done.setdefault(executed, []).extend(*absorbed)
    return done


def _plain(name: str) -> str:
    """A name without the suffixes of ONNX Runtime's layout optimizer."""
    return re.sub(r"(_token_\d+|_nhwc|_nchwc?)+$", "", name)


def _types(model: Any) -> dict[str, int]:
    """The element type of every value; the optimized file states only those of inputs, outputs and constants."""
    graph = model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    types |= {t.name: t.data_type for t in graph.initializer}
    for node in graph.node:
        made = _made(node, types)
        types.update((o, made) for o in node.output if o)
    return types


def _made(node: Any, types: dict[str, int]) -> int:
    """The element type of a node's output; by default that of its first input."""
    kind = node.op_type
    attributes = {a.name: a for a in node.attribute}
    if kind == "Cast":
        return attributes["to"].i
    if kind == "Constant":
        return attributes["value"].t.data_type if "value" in attributes else TensorProto.FLOAT
    if kind in ("Shape", "Size", "ArgMax", "NonZero", "MatMulInteger", "ConvInteger"):
        return TensorProto.INT64
    if kind in ("DequantizeLinear", "MatMulIntegerToFloat") or (kind == "QGemm" and len(node.input) < 9):
        return TensorProto.FLOAT
    # The input with the output's type: a quantizer's zero point, a Where's first choice, a QLinearConcat's zero point.
    position = {"QuantizeLinear": 2, "Where": 1, "QLinearConcat": 2}.get(kind, 0)
    return types.get(node.input[position], 0) if len(node.input) > position else 0
