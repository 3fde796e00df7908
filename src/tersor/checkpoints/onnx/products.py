"""Write products of inputs quantized at run time as DynamicQuantizeLinear and MatMulInteger, which runtimes fuse."""

import numpy as np
import onnx_ir as ir

from tersor.checkpoints.onnx.constants import Constants
from tersor.checkpoints.onnx.graph import DOMAIN
from tersor.checkpoints.onnx.rewrites import constant
from tersor.errors import EngineError

_PRODUCTS = ("Gemm", "MatMul")


def write_products(graph: ir.Graph, constants: Constants) -> None:
    """Replace every ``quantize_whole`` and the products that read it, weights and biases included.

    Raises:
        EngineError: ONNX has no integer operator for a product; the message names its layer.
    """
    for node in list(graph):
        if node.domain != DOMAIN or node.op_type != "quantize_whole":
            continue
        if node.attributes["high"].as_int() != 255:
            raise EngineError(f"{node.name}: ONNX supports only uint8 for inputs quantized at run time")
        name = str(node.name)
        codes = ir.node("DynamicQuantizeLinear", [node.inputs[0]], num_outputs=3, name=f"{name}/DynamicQuantizeLinear")
        for k, value in enumerate(codes.outputs):
            value.name = f"{name}/codes.{k}"
        graph.insert_before(node, codes)
        for product in list(node.outputs[0].consumers()):
            _write(graph, constants, product, codes)
        graph.remove(node, safe=True)


def _write(graph: ir.Graph, constants: Constants, product: ir.Node, quantized: ir.Node) -> None:
    name = str(product.name)
    weight = _weight(product) if product.op_type in _PRODUCTS else None
    if weight is None:
        raise EngineError(f"{name}: ONNX has no integer {product.op_type} for inputs quantized at run time")
    codes, scale = weight
    title = name.removesuffix("/MatMul")
    weight_codes = constants.value(np.ascontiguousarray(codes.T), f"{title}.weight_codes")
    steps = constants.value(scale.reshape(-1).astype(np.float32), f"{title}.weight_scale")
    values, step, zero_point = quantized.outputs
    chain = [ir.node("MatMulInteger", [values, weight_codes, zero_point], name=name)]
    chain.append(ir.node("Cast", [chain[0].outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast"))
    chain.append(ir.node("Mul", [step, steps], name=f"{name}/Mul_0"))
    chain.append(ir.node("Mul", [chain[1].outputs[0], chain[2].outputs[0]], name=f"{name}/Mul_1"))
    if len(product.inputs) == 3 and product.inputs[2] is not None:
        chain.append(ir.node("Add", [chain[-1].outputs[0], product.inputs[2]], name=f"{name}/Add"))
    for k, node in enumerate(chain):
        node.outputs[0].name = f"{name}/product.{k}"
    last, value = chain[-1].outputs[0], product.outputs[0]
    last.name, last.type, last.shape = value.name, value.type, value.shape
    value.name = None
    graph.insert_before(product, chain)
    ir.convenience.replace_all_uses_with(value, last, replace_graph_outputs=True)
    graph.remove(product, safe=True)


def _weight(product: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """The int8 codes ``[out, in]`` and the scales of a product's weight, or None if ONNX cannot compute it in
    integers."""
    source = product.inputs[1].producer() if product.inputs[1] is not None else None
    transposed = "transB" in product.attributes and product.attributes["transB"].as_int() == 1
    if source is not None and source.op_type == "Transpose":
        source, transposed = source.inputs[0].producer() if source.inputs[0] is not None else None, True
    if source is None or source.domain != DOMAIN or source.op_type != "dequantize" or not transposed:
        return None
    codes, scale, zero_point = (constant(v) for v in source.inputs[:3])
    if codes is None or scale is None or codes.ndim != 2 or codes.dtype != np.int8:
        return None
    per_channel = scale.size in (1, codes.shape[0]) and (zero_point is None or not zero_point.any())
    return (codes, np.broadcast_to(scale.reshape(-1), codes.shape[0])) if per_channel else None
