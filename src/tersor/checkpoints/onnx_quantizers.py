"""Our quantizer nodes written as QuantizeLinear and DequantizeLinear with integer initializers."""

import math
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from tersor.checkpoints.onnx_graph import DOMAIN
from tersor.checkpoints.onnx_rewrites import Quantizer, absorb, constant, is_output, moving_inputs, quantizer
from tersor.errors import EngineError

_QUANTIZER = "tersor.quantizer"
_INTEGERS = (np.uint8, np.int8, np.uint16, np.int16)
_FLOATS = {
    "fp16": (np.float16, 65504.0),
    "bf16": (ml_dtypes.bfloat16, float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)),
    "fp8_e4m3": (ml_dtypes.float8_e4m3fn, 448.0),
    "fp8_e5m2": (ml_dtypes.float8_e5m2, 57344.0),
}
_REMEDY = "choose another format or granularity for it, or the engine `torch`, which simulates them all"


@dataclass(frozen=True)
class Style:
    """How a runtime wants its QDQ.

    Args:
        merge_activations: drop a clamp (ReLU, ReLU6) whose work the quantizer behind it does anyway, and do any
            other on the codes.
        on_codes: run what only moves values (pooling, slicing, joining) on the codes, not between quantizers.
        narrow_codes: keep code ranges that are narrower than their type, by a Clip on the codes. Without it,
            symmetric int8 takes −128 too, as TensorRT's own quantizers do.
        integer_biases: round biases as int32 arithmetic holds them, and write them so.
    """

    merge_activations: bool = True
    on_codes: bool = True
    narrow_codes: bool = True
    integer_biases: bool = True


@dataclass(frozen=True)
class Writer:
    """A graph being rewritten; equal constants are stored once.

    Args:
        bits: by the name of a dequantize node, the bits of its codes where fewer than 8.
    """

    graph: ir.Graph
    style: Style
    bits: dict[str, int]
    stored: dict[Any, ir.Value] = field(default_factory=dict)

    def write(self) -> None:
        """Replace every quantizer node; what they leave unread is for the caller to drop."""
        kinds = {"fake_quantize": self._activation, "dequantize": self._weight, "cast": self._cast}
        for node in list(self.graph):
            if node.domain == DOMAIN:
                kinds[node.op_type](node)
        if self.style.integer_biases:
            for node in self.graph:
                if node.op_type in ("Conv", "Gemm"):
                    self._bias(node)

    def _activation(self, node: ir.Node) -> None:
        own, name, x = quantizer(node), str(node.name), node.inputs[0]
        assert own is not None and x is not None
        low, high = own.low, own.high
        limits = next((t for t in map(np.iinfo, _INTEGERS) if t.min <= low and high <= t.max), None)
        if limits is None:
            raise EngineError(f"{name}: ONNX has no integer type for codes {low}…{high}; {_REMEDY}")
        mover = x.producer()
        if mover is not None and self._runs_on_codes(mover, own):
            return self._replace(node, [self._dequantized(mover, own, x, name)])
        clamp = _clamp(x) if self.style.merge_activations and own.scale.size == 1 else None
        if clamp is not None:
            assert mover is not None
            x, bounds = clamp
            absorb(x.producer(), mover.name)
            low, high = max(low, own.code(bounds[0])), min(high, own.code(bounds[1]))
        parameters, place = self._parameters(name, own.scale, own.zero_point, x, own.block, limits.dtype)
        chain = [ir.node("QuantizeLinear", [x, *parameters], place, name=f"{name}/QuantizeLinear")]
        exact = self.style.narrow_codes or clamp is not None
        if exact and (low > limits.min or high < limits.max):
            ends = [self._constant(np.array(b, limits.dtype), f"{name}/{b}") for b in (int(low), int(high))]
            chain.append(ir.node("Clip", [chain[-1].outputs[0], *ends], name=f"{name}/Clip"))
        chain.append(ir.node("DequantizeLinear", [chain[-1].outputs[0], *parameters], place, name=name))
        chain[-1].meta[_QUANTIZER] = own
        self._replace(node, chain)

    def _runs_on_codes(self, mover: ir.Node, own: Quantizer) -> bool:
        """Whether an operator only moves what was quantized alike before it."""
        if _QUANTIZER in mover.meta:
            return True
        sources = [v.producer() for v in moving_inputs(mover)]
        known = [s.meta.get(_QUANTIZER) if s is not None else None for s in sources]
        behind = [quantizer(c) for v in mover.outputs for c in v.consumers()]
        single = all(len(v.uses()) == 1 and not is_output(v) for v in mover.outputs)
        return self.style.on_codes and single and bool(known) and all(q is not None and own.same(q) for q in known + behind)

    def _dequantized(self, mover: ir.Node, own: Quantizer, value: ir.Value, name: str) -> ir.Node:
        """The moving operator put on the codes, and what dequantizes one output of it."""
        for k, moved in enumerate(mover.inputs):
            source = moved.producer() if moved is not None else None
            if source is not None and source.op_type == "DequantizeLinear" and _QUANTIZER in source.meta:
                mover.replace_input_with(k, source.inputs[0])
                mover.meta[_QUANTIZER] = source.inputs[1:]
        parameters = mover.meta[_QUANTIZER]
        if mover.op_type == "Pad" and len(mover.inputs) < 4:
            mover.resize_inputs(3)
            mover.replace_input_with(2, parameters[1])
        last = ir.node("DequantizeLinear", [value, *parameters], name=name)
        last.meta[_QUANTIZER] = own
        return last

    def _bias(self, node: ir.Node) -> None:
        """The bias of an integer layer in int32: ONNX Runtime's kernels take no other."""
        sources = [v.producer() if v is not None else None for v in node.inputs]
        bias = constant(node.inputs[2]) if len(node.inputs) == 3 else None
        if bias is None or any(s is None or s.op_type != "DequantizeLinear" for s in sources[:2]):
            return
        step, scale = (constant(s.inputs[1]) for s in sources[:2])  # type: ignore[union-attr]
        if step is None or scale is None or step.size != 1 or scale.ndim > 1:
            return
        unit = (step * scale).astype(np.float32)
        codes = np.round(bias.astype(np.float64) / unit)
        if np.abs(codes).max() > 2**31 - 1:
            return
        name = f"{node.name}.bias"
        place = {"axis": 0} if unit.ndim else {}
        inputs = [self._constant(codes.astype(np.int32), name), self._constant(unit, f"{name}_scale")]
        inputs.append(self._constant(np.zeros(unit.shape, np.int32), f"{name}_zero_point"))
        written = ir.node("DequantizeLinear", inputs, place, name=f"{node.name}/bias")
        written.outputs[0].name = f"{node.name}/bias"
        self.graph.insert_before(node, written)
        node.replace_input_with(2, written.outputs[0])

    def _weight(self, node: ir.Node) -> None:
        name = str(node.name)
        codes, scale, zero_point = (constant(v) for v in node.inputs)
        if codes is None or scale is None or zero_point is None:
            raise EngineError(f"{name}: the codes of a weight are computed at run time; {_REMEDY}")
        block = node.attributes["block"].as_int()
        end = _transposed(node)
        if end is not node:
            codes, scale, zero_point = (a.T if a.ndim == 2 else a for a in (codes, scale, zero_point))
        few = self.bits.get(name, 8) <= 4 and codes.dtype == np.int8
        held = self._constant(codes.astype(ml_dtypes.int4) if few else codes, str(node.inputs[0].name))  # type: ignore[union-attr]
        chain: list[ir.Node] = []
        if codes.dtype in (np.float16, ml_dtypes.bfloat16):
            chain.append(ir.node("Cast", [held], {"to": ir.DataType.FLOAT}, name=name))
            if (scale != 1).any():
                factor = self._constant(scale, f"{name}/scale")
                chain.append(ir.node("Mul", [chain[-1].outputs[0], factor], name=f"{name}/Mul"))
        else:
            if few and any(u.op_type == "Conv" for u in node.outputs[0].consumers()):
                # Convolutions compute with int8 weights; the runtime widens them once, when it loads the file.
                chain.append(ir.node("Cast", [held], {"to": ir.DataType.INT8}, name=f"{name}/Cast"))
                few = False
            kind = ml_dtypes.int4 if few else codes.dtype
            fixed = ir.Value(name="", shape=ir.Shape(codes.shape))
            parameters, place = self._parameters(name, scale, zero_point, fixed, block, kind, end is not node)
            source = chain[-1].outputs[0] if chain else held
            chain.append(ir.node("DequantizeLinear", [source, *parameters], place, name=name))
        self._replace(end, chain)

    def _cast(self, node: ir.Node) -> None:
        name, x, scale = str(node.name), node.inputs[0], constant(node.inputs[1])
        form = node.attributes["format"].as_string()
        if form not in _FLOATS or scale is None or x is None:
            raise EngineError(f"{name}: ONNX cannot express values in {form}; {_REMEDY}")
        kind, limit = _FLOATS[form]
        if form.startswith("fp8"):
            zeros = np.zeros_like(scale)
            parameters, place = self._parameters(name, scale, zeros, x, 0, kind)
            first = ir.node("QuantizeLinear", [x, *parameters], place, name=f"{name}/QuantizeLinear")
            return self._replace(node, [first, ir.node("DequantizeLinear", [first.outputs[0], *parameters], place, name=name)])
        steps: list[tuple[str, list[ir.Value], dict[str, Any]]] = []
        factor = [self._constant(scale, f"{name}/scale")] if (scale != 1).any() else []
        steps += [("Div", factor, {})] if factor else []
        ends = [self._constant(np.array(b, np.float32), f"{name}/{b}") for b in (-limit, limit)]
        steps.append(("Clip", ends, {}))
        steps += [("Cast", [], {"to": ir.DataType.from_numpy(np.dtype(kind))}), ("Cast", [], {"to": ir.DataType.FLOAT})]
        steps += [("Mul", factor, {})] if factor else []
        chain: list[ir.Node] = []
        for k, (kind_of_op, others, attributes) in enumerate(steps):
            label = name if k == len(steps) - 1 else f"{name}/{kind_of_op}_{k}"
            chain.append(ir.node(kind_of_op, [x, *others], attributes, name=label))
            x = chain[-1].outputs[0]
        self._replace(node, chain)

    def _parameters(
        self,
        name: str,
        scale: np.ndarray,
        zero_point: np.ndarray,
        x: ir.Value,
        block: int,
        kind: Any,
        transposed: bool = False,
    ) -> tuple[list[ir.Value], dict[str, Any]]:
        """Scale and zero point as initializers in ONNX's shapes, and the attributes that say where they apply."""
        shape = [d if isinstance(d, int) else -1 for d in x.shape] if x.shape is not None else []
        try:
            scale, place = _laid_out(scale, shape, block, transposed)
            zero_point, _ = _laid_out(np.broadcast_to(zero_point, _shape_like(zero_point, scale)), shape, block, transposed)
        except ValueError as error:
            raise EngineError(f"{name}: {error}; {_REMEDY}") from None
        zero_point = np.broadcast_to(zero_point, scale.shape).astype(kind)
        values = [self._constant(scale.astype(np.float32), f"{name}.scale"), self._constant(zero_point, f"{name}.zero_point")]
        return values, place

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self.stored:
            self.graph.initializers.pop(name, None)
            tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
            self.graph.register_initializer(value)
            self.stored[key] = value
        return self.stored[key]

    def _replace(self, node: ir.Node, chain: list[ir.Node]) -> None:
        last, value = chain[-1].outputs[0], node.outputs[0]
        for new in chain[:-1]:
            new.outputs[0].name = str(new.name)
        last.name, last.type, last.shape = value.name, value.type, value.shape
        self.graph.insert_before(node, chain)
        ir.convenience.replace_all_uses_with(value, last, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)


def _shape_like(zero_point: np.ndarray, scale: np.ndarray) -> tuple[int, ...]:
    return zero_point.shape


def _laid_out(t: np.ndarray, shape: list[int], block: int, transposed: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """One value for all, a vector along an axis, or (two axes in play) one value for each block of the second."""
    many = [k for k, n in enumerate(t.shape) if n > 1]
    if not many:
        return t.reshape(()), {}
    if len(many) == 1:
        axis = many[0]
        if t.shape[axis] != shape[axis]:
            t = np.repeat(t, block, axis)
            t = t.take(range(shape[axis]), axis) if shape[axis] > 0 else t
        return t.reshape(-1), {"axis": axis}
    blocked = [k for k in many if t.shape[k] != shape[k]]
    if len(blocked) != 1 or block < 2 or shape[blocked[0]] != t.shape[blocked[0]] * block:
        raise ValueError(f"ONNX cannot lay out scales of shape {tuple(t.shape)} over {tuple(shape)} in groups of {block}")
    whole = [t.shape[k] if k == blocked[0] else n for k, n in enumerate(shape)]
    return np.broadcast_to(t, whole), {"axis": blocked[0], "block_size": block}


def _clamp(x: ir.Value) -> tuple[ir.Value, tuple[float, float]] | None:
    """The input and bounds of the clamp that makes ``x``, where nobody else reads ``x``."""
    node = x.producer()
    if node is None or len(x.uses()) != 1 or is_output(x) or node.inputs[0] is None:
        return None
    if node.op_type == "Relu":
        return node.inputs[0], (0.0, math.inf)
    if node.op_type != "Clip":
        return None
    ends = [constant(v) if v is not None else None for v in (*node.inputs[1:3], None, None)[:2]]
    given = [v is not None for v in node.inputs[1:3]]
    if any(g and e is None for g, e in zip(given, ends, strict=False)):
        return None
    low, high = (default if e is None else float(e) for e, default in zip(ends, (-math.inf, math.inf), strict=True))
    return node.inputs[0], (low, high)


def _transposed(node: ir.Node) -> ir.Node:
    """The Transpose that alone reads a weight matrix, else the node itself."""
    readers = node.outputs[0].consumers()
    if len(readers) != 1 or readers[0].op_type != "Transpose" or len(node.outputs[0].shape or ()) != 2:
        return node
    return readers[0]
