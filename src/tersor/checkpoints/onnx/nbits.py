"""Write products of float inputs and low-bit weights as MatMulNBits, whose weights ONNX Runtime keeps packed."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from tersor.checkpoints.onnx.constants import Constants
from tersor.checkpoints.onnx.graph import DOMAIN
from tersor.checkpoints.onnx.lstm import MICROSOFT
from tersor.checkpoints.onnx.rewrites import constant, drop_dead, replace_node
from tersor.numerics.packing import pack

# The group sizes that ONNX Runtime's kernels support.
BLOCKS = (16, 32, 64, 128, 256)
_BITS = (2, 4, 8)
# Values of `accuracy_level`: compute in float, or quantize the inputs to int8.
FLOAT, INT8 = 1, 4


def write_packed(graph: ir.Graph, constants: Constants, bits: dict[str, int], accuracy: int = FLOAT) -> bool:
    """Write linear products with quantized weights as ``MatMulNBits``; returns whether there were any.

    Supported are 2, 4 and 8 bits in groups of a multiple of 16 inputs, and 2 and 4 bits per channel or tensor. Other
    weights stay for DequantizeLinear.

    Args:
        bits: the bits of the codes, by the name of the dequantize node.
        accuracy: ``FLOAT``, or ``INT8``: inputs are quantized at run time, with a scale per group.
    """
    written = False
    for node in list(graph):
        if (node.domain, node.op_type) != (DOMAIN, "dequantize"):
            continue
        products = _products(node)
        weight = _packed(node, bits.get(str(node.name), 8)) if products else None
        for product in products if weight is not None else ():
            _write(graph, constants, product, weight, accuracy)  # type: ignore[arg-type]
            written = True
    # Otherwise the unpacked weights would be written too.
    drop_dead(graph)
    return written


def _products(node: ir.Node) -> list[ir.Node]:
    """The linear layers that read a weight ``[out, in]``, directly or transposed."""
    weight, products = node.outputs[0], []
    transposed = [reader.outputs[0] for reader in weight.consumers() if reader.op_type == "Transpose"]
    for value in (weight, *transposed):
        for reader in value.consumers():
            is_transposing = "transB" in reader.attributes and reader.attributes["transB"].as_int() == 1
            layer = reader.op_type == "Gemm" or (reader.op_type == "MatMul" and not is_transposing)
            if layer and is_transposing != (value is not weight) and reader.inputs[1] is value:
                products.append(reader)
    return products


@dataclass(frozen=True)
class _Packed:
    """A weight in the operator's layout: unsigned codes, and per group a scale and, if asymmetric, a zero point."""

    name: str
    width: int
    bits: int
    block: int
    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None


def _packed(node: ir.Node, bits: int) -> _Packed | None:
    """The weight of a dequantize node, or None if MatMulNBits cannot express it."""
    codes, scale, zero_point = (constant(v) for v in node.inputs[:3])
    group = node.attributes["block"].as_int()
    if codes is None or scale is None or zero_point is None or codes.ndim != 2 or bits not in _BITS:
        return None
    if codes.dtype not in (np.int8, np.uint8):
        return None
    (out, width), grouped = codes.shape, scale.shape[1] > 1
    if scale.shape[0] not in (1, out) or (not group or group % BLOCKS[0] if grouped else bits == 8):
        return None
    block = max(b for b in BLOCKS if group % b == 0) if grouped else _cheapest(width, bits)
    blocks, offset = -(-width // block), 0 if codes.dtype == np.uint8 else 2 ** (bits - 1)

    def expand(t: np.ndarray) -> np.ndarray:
        full = np.broadcast_to(t, (out, scale.shape[1]))
        return np.repeat(full, group // block if grouped else blocks, 1)[:, :blocks]

    shifted = np.pad(codes.astype(np.int16) + offset, ((0, 0), (0, blocks * block - width)))
    return _Packed(
        str(node.inputs[0].name),  # type: ignore[union-attr]
        width,
        bits,
        block,
        _bytes(shifted, bits).reshape(out, blocks, -1),
        expand(scale).astype(np.float32),
        _zero_points(expand(zero_point) + offset, bits),
    )


def _zero_points(zeros: np.ndarray, bits: int) -> np.ndarray | None:
    """Packed zero points, each row byte-aligned; None if all are the midpoint, the operator's default."""
    if (zeros == 2 ** (bits - 1)).all():
        return None
    return _bytes(np.pad(zeros, ((0, 0), (0, -zeros.shape[1] % (8 // bits)))), bits).reshape(len(zeros), -1)


def _bytes(codes: np.ndarray, bits: int) -> np.ndarray:
    return pack(torch.from_numpy(codes.astype(np.uint8)), bits).numpy()


def _write(graph: ir.Graph, constants: Constants, product: ir.Node, weight: _Packed, accuracy: int) -> None:
    parameters = [
        None if t is None else constants.value(t, f"{weight.name}.{part}")
        for part, t in (("packed", weight.codes), ("scale", weight.scale), ("zero_point", weight.zero_point))
    ]
    bias = product.inputs[2] if len(product.inputs) == 3 else None
    # The fifth input, g_idx, is omitted: it would permute the groups.
    inputs = [product.inputs[0], *parameters, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    sizes = {"K": weight.width, "N": len(weight.codes), "bits": weight.bits, "block_size": weight.block}
    attributes = {**sizes, "accuracy_level": accuracy}
    replace_node(graph, product, [ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT, name=product.name)])


def _cheapest(width: int, bits: int) -> int:
    """The block size with the fewest bytes per row when every block repeats the row's one scale.

    >>> _cheapest(64, 4), _cheapest(172, 4), _cheapest(4096, 4)
    (64, 64, 256)
    """
    return min(BLOCKS, key=lambda block: -(-width // block) * (block * bits // 8 + 4))
