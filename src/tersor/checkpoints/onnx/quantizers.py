"""Write Tersor's quantizer nodes as QuantizeLinear and DequantizeLinear with integer initializers."""

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from tersor.checkpoints.onnx.constants import Constants
from tersor.checkpoints.onnx.graph import DOMAIN
from tersor.checkpoints.onnx.rewrites import (
    Quantizer,
    absorb,
    constant,
    is_output,
    moved_inputs,
    quantizer,
    replace_node,
)
from tersor.errors import EngineError

# Node metadata during the rewrite: the quantizer of a DequantizeLinear; the scale and zero point of the codes that
# an operator moves.
_QUANTIZER, _PARAMETERS = "tersor.quantizer", "tersor.parameters"
_INTEGERS = (np.uint8, np.int8, np.uint16, np.int16)
_FLOATS = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}
_REMEDY = "choose another format or granularity, or the engine `torch`, which simulates all of them"


@dataclass(frozen=True)
class Style:
    """The form of QDQ that a runtime expects.

    Args:
        merge_activations: drop a clamp (ReLU, ReLU6) that the following quantizer already performs, and apply any other
            to the codes.
        on_codes: run operators that only move values (pooling, slicing, joining) on the codes, not between quantizers.
        narrow_codes: enforce code ranges narrower than their type with a Clip on the codes. Without it, symmetric int8
            includes −128, as in TensorRT's quantizers.
        integer_biases: round biases to int32 with the scale of the accumulator, and store them in int32.
        packed: write products with low-bit weights as ONNX Runtime's MatMulNBits.
        int8_products: MatMulNBits quantizes its inputs to int8 at run time.
        guarded: keep float operators between quantizers in float in a default session of ONNX Runtime.
    """

    merge_activations: bool = True
    on_codes: bool = True
    narrow_codes: bool = True
    integer_biases: bool = True
    packed: bool = False
    int8_products: bool = False
    guarded: bool = False


@dataclass(frozen=True)
class Writer:
    """Replaces the quantizer nodes of a graph.

    Args:
        bits: the bits of the codes if fewer than 8, by the name of the dequantize node.
        titles: the layer that errors name, by the name of the quantizer node.
    """

    graph: ir.Graph
    constants: Constants
    style: Style
    bits: dict[str, int]
    titles: dict[str, str]

    def write(self) -> None:
        """Replace every quantizer node; the caller drops the nodes that are then unused.

        Raises:
            EngineError: ONNX cannot express a quantizer; the message names it.
        """
        kinds = {"fake_quantize": self._activation, "dequantize": self._weight, "cast": self._cast}
        for node in list(self.graph):
            if node.domain == DOMAIN:
                try:
                    kinds[node.op_type](node)
                except ValueError as error:
                    name = self.titles.get(str(node.name), node.name)
                    raise EngineError(f"{name}: {error}; {_REMEDY}") from None
        for node in list(self.graph) if self.style.integer_biases else ():
            if node.op_type in ("Conv", "Gemm"):
                self._bias(node)

    def _activation(self, node: ir.Node) -> None:
        target, name, x = quantizer(node), str(node.name), node.inputs[0]
        assert target is not None
        assert x is not None
        low, high = float(target.low), float(target.high)
        limits = next((t for t in map(np.iinfo, _INTEGERS) if t.min <= low and high <= t.max), None)
        if limits is None:
            raise ValueError(f"ONNX has no integer type for codes {target.low}…{target.high}")
        maker = x.producer()
        if maker is not None and self._runs_on_codes(maker, target):
            return replace_node(self.graph, node, [self._dequantized(maker, target, x, name)])
        # ONNX Runtime has no 16-bit Clip, so such a range is clipped in float, before the codes.
        wide = np.dtype(limits.dtype).itemsize > 1
        clamp = _clamp(x) if self.style.merge_activations and target.scale.size == 1 and not wide else None
        if clamp is not None:
            assert maker is not None
            x, bounds = clamp
            absorb(x.producer(), maker.name)
            low, high = max(low, target.code(bounds[0])), min(high, target.code(bounds[1]))
        values, attributes = self.constants.parameters(
            name, target.scale, target.zero_point, _shape(x), target.block, limits.dtype
        )
        chain = [ir.node("QuantizeLinear", [x, *values], attributes, name=f"{name}/QuantizeLinear")]
        exact = self.style.narrow_codes or clamp is not None
        if exact and (low > limits.min or high < limits.max):
            chain = self._clipped(chain[0], target, (low, high), np.float32 if wide else limits.dtype)
        chain.append(ir.node("DequantizeLinear", [chain[-1].outputs[0], *values], attributes, name=name))
        chain[-1].meta[_QUANTIZER] = target
        replace_node(self.graph, node, chain)

    def _clipped(self, step: ir.Node, target: Quantizer, codes: tuple[float, float], kind: Any) -> list[ir.Node]:
        """Restrict a QuantizeLinear to a code range with a Clip: on the codes or, with ``kind`` float32, on the
        input."""
        before = kind is np.float32
        ends = [(c - target.zero_point) * target.scale if before else c for c in codes]
        scalars = [np.array(e, kind).reshape(()) for e in ends]
        bounds = [self.constants.value(s, f"{step.name}/{c:.0f}") for c, s in zip(codes, scalars, strict=True)]
        if not before:
            return [step, ir.node("Clip", [step.outputs[0], *bounds], name=f"{step.name}/Clip")]
        clip = ir.node("Clip", [step.inputs[0], *bounds], name=f"{step.name}/Clip")
        step.replace_input_with(0, clip.outputs[0])
        return [clip, step]

    def _runs_on_codes(self, mover: ir.Node, target: Quantizer) -> bool:
        """Whether an operator only moves values that were quantized with the same parameters."""
        if _PARAMETERS in mover.meta:
            return True
        sources = [v.producer() for v in moved_inputs(mover)]
        known = [s.meta.get(_QUANTIZER) if s is not None else None for s in sources]
        known += [quantizer(c) for v in mover.outputs for c in v.consumers()]
        single = all(len(v.uses()) == 1 and not is_output(v) for v in mover.outputs)
        same = bool(sources) and all(q is not None and target.same(q) for q in known)
        return self.style.on_codes and single and same

    def _dequantized(self, mover: ir.Node, target: Quantizer, value: ir.Value, name: str) -> ir.Node:
        """Move the operator before DequantizeLinear, onto the codes; returns the DequantizeLinear of one output."""
        for k, moved in enumerate(mover.inputs):
            source = moved.producer() if moved is not None else None
            if source is not None and _QUANTIZER in source.meta:
                mover.replace_input_with(k, source.inputs[0])
                mover.meta[_PARAMETERS] = source.inputs[1:]
        parameters = mover.meta[_PARAMETERS]
        if mover.op_type == "Pad":
            mover.resize_inputs(3)
            mover.replace_input_with(2, parameters[1])
        last = ir.node("DequantizeLinear", [value, *parameters], name=name)
        last.meta[_QUANTIZER] = target
        return last

    def _weight(self, node: ir.Node) -> None:
        name, block = str(node.name), node.attributes["block"].as_int()
        arrays = [constant(v) for v in node.inputs]
        if any(a is None for a in arrays):
            raise ValueError("the codes of a weight are not constant")
        end = _transposed(node)
        codes, scale, zero_point = (
            a.T if end is not node and a.ndim == 2 else a for a in arrays if a is not None
        )
        is_packed = self.bits.get(name, 8) <= 4
        stored = codes.astype(ml_dtypes.int4 if codes.dtype == np.int8 else ml_dtypes.uint4) if is_packed else codes
        source = self.constants.value(stored, str(node.inputs[0].name))  # type: ignore[union-attr]
        chain: list[ir.Node] = []
        if is_packed and any(u.op_type == "Conv" for u in node.outputs[0].consumers()):
            # Convolutions compute with int8 weights; the runtime widens these once, when it loads the file.
            wide = ir.DataType.from_numpy(codes.dtype)
            chain.append(ir.node("Cast", [source], {"to": wide}, name=f"{name}/Cast"))
            source, stored = chain[-1].outputs[0], codes
        values, attributes = self.constants.parameters(name, scale, zero_point, codes.shape, block, stored.dtype)
        chain.append(ir.node("DequantizeLinear", [source, *values], attributes, name=name))
        replace_node(self.graph, end, chain)

    def _bias(self, node: ir.Node) -> None:
        """Write the bias of an integer layer in int32, the only type that ONNX Runtime's kernels accept."""
        sources = [v.producer() if v is not None else None for v in node.inputs]
        bias = constant(node.inputs[2]) if len(node.inputs) == 3 else None
        if bias is None or any(s is None or s.op_type != "DequantizeLinear" for s in sources[:2]):
            return
        step, scale = (constant(s.inputs[1]) for s in sources[:2])  # type: ignore[union-attr]
        if step is None or scale is None or step.size != 1 or scale.ndim > 1:
            return
        unit = np.asarray(step * scale, np.float32)
        codes = np.round(bias.astype(np.float64) / unit)
        if np.abs(codes).max() > 2**31 - 1:
            return
        values, attributes = self.constants.parameters(
            f"{node.name}.bias", unit, np.zeros(()), bias.shape, 0, np.int32
        )
        stored = self.constants.value(codes.astype(np.int32), f"{node.name}.bias")
        written = ir.node("DequantizeLinear", [stored, *values], attributes, name=f"{node.name}/bias")
        written.outputs[0].name = f"{node.name}/bias"
        self.graph.insert_before(node, written)
        node.replace_input_with(2, written.outputs[0])

    def _cast(self, node: ir.Node) -> None:
        name, x, scale = str(node.name), node.inputs[0], constant(node.inputs[1])
        form = node.attributes["format"].as_string()
        if form not in _FLOATS or scale is None or x is None:
            raise ValueError(f"ONNX cannot express values in {form}")
        kind = np.dtype(_FLOATS[form])
        if form.startswith("fp8"):
            values, attributes = self.constants.parameters(name, scale, np.zeros(()), _shape(x), 0, kind)
            first = ir.node("QuantizeLinear", [x, *values], attributes, name=f"{name}/QuantizeLinear")
            last = ir.node("DequantizeLinear", [first.outputs[0], *values], attributes, name=name)
            return replace_node(self.graph, node, [first, last])
        limit = float(ml_dtypes.finfo(kind).max)
        ends = [self.constants.value(np.array(b, np.float32), f"{name}/{b}") for b in (-limit, limit)]
        factor = [self.constants.value(scale, f"{name}.scale")]
        steps: list[tuple[str, list[ir.Value], dict[str, Any]]] = [
            ("Div", factor, {}),
            ("Clip", ends, {}),
            ("Cast", [], {"to": ir.DataType.from_numpy(kind)}),
            ("Cast", [], {"to": ir.DataType.FLOAT}),
            ("Mul", factor, {}),
        ]
        chain: list[ir.Node] = []
        for k, (op, others, attributes) in enumerate(steps):
            chain.append(ir.node(op, [x, *others], attributes, name=f"{name}/{op}_{k}"))
            x = chain[-1].outputs[0]
        replace_node(self.graph, node, chain)


def _shape(x: ir.Value) -> tuple[int, ...]:
    """The shape of a value, with −1 for dynamic dimensions."""
    return tuple(d if isinstance(d, int) else -1 for d in x.shape) if x.shape is not None else ()


def _clamp(x: ir.Value) -> tuple[ir.Value, tuple[float, float]] | None:
    """The input and bounds of the clamp that produces ``x``, or None if there is none or ``x`` has other readers."""
    node = x.producer()
    if node is None or len(x.uses()) != 1 or is_output(x) or node.inputs[0] is None:
        return None
    if node.op_type == "Relu":
        return node.inputs[0], (0.0, math.inf)
    if node.op_type != "Clip":
        return None
    bounds = [-math.inf, math.inf]
    for k, given in enumerate(node.inputs[1:3]):
        end = constant(given)
        if given is not None and end is None:
            return None
        bounds[k] = bounds[k] if end is None else float(end)
    return node.inputs[0], (bounds[0], bounds[1])


def _transposed(node: ir.Node) -> ir.Node:
    """The Transpose that is the only reader of a weight matrix, or the node itself."""
    readers = node.outputs[0].consumers()
    if len(readers) != 1 or readers[0].op_type != "Transpose" or len(node.outputs[0].shape or ()) != 2:
        return node
    return readers[0]
