"""Products of float inputs with weights of few bits: MatMulNBits, whose weights ONNX Runtime keeps packed."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from tersor.checkpoints.onnx.constants import Constants
from tersor.checkpoints.onnx.graph import DOMAIN
from tersor.checkpoints.onnx.lstm import MICROSOFT
from tersor.checkpoints.onnx.rewrites import constant, drop_dead, exchange
from tersor.numerics.packing import pack

# Inputs that share a scale, as ONNX Runtime's kernels take them.
BLOCKS = (16, 32, 64, 128, 256)
_BITS = (2, 4, 8)
# In which width the products are computed: by `accuracy_level`, ONNX Runtime quantizes the inputs to int8 or does not.
FLOAT, INT8 = 1, 4


def write_packed(graph: ir.Graph, constants: Constants, bits: dict[str, int], accuracy: int = FLOAT) -> bool:
    """Write the linear products of stored weights as ``MatMulNBits``; whether there were any.

    Taken are weights of 2, 4 and 8 bits in groups of a multiple of 16 inputs, and of 2 and 4 bits per channel or
    tensor; the others are left, to be written as DequantizeLinear.

    Args:
        bits: by the name of a dequantize node, the bits of its codes.
        accuracy: ``FLOAT``, or ``INT8``: inputs are quantized as they come, with a scale for each group.
    """
    found = False
    for node in list(graph):
        if (node.domain, node.op_type) != (DOMAIN, "dequantize"):
            continue
        products = _products(node)
        weight = _packed(node, bits.get(str(node.name), 8)) if products else None
        for product in products if weight is not None else ():
            _write(graph, constants, product, weight, accuracy)  # type: ignore[arg-type]
            found = True
    # The weights themselves; else they would be written a second time.
    drop_dead(graph)
    return found


def _products(node: ir.Node) -> list[ir.Node]:
    """The linear layers that read a weight ``[out, in]``, itself or transposed."""
    weight, found = node.outputs[0], []
    turned = [reader.outputs[0] for reader in weight.consumers() if reader.op_type == "Transpose"]
    for value in (weight, *turned):
        for reader in value.consumers():
            across = "transB" in reader.attributes and reader.attributes["transB"].as_int() == 1
            layer = reader.op_type == "Gemm" or (reader.op_type == "MatMul" and not across)
            if layer and across != (value is not weight) and reader.inputs[1] is value:
                found.append(reader)
    return found


@dataclass(frozen=True)
class _Packed:
    """A weight in the operator's layout: codes without sign, each group's scale and, where needed, zero point."""

    name: str
    width: int
    bits: int
    block: int
    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None


def _packed(node: ir.Node, bits: int) -> _Packed | None:
    """The weight of a dequantize node; None where the operator has no way to say it."""
    codes, scale, zero_point = (constant(v) for v in node.inputs[:3])
    group = node.attributes["block"].as_int()
    if codes is None or scale is None or zero_point is None or codes.ndim != 2 or bits not in _BITS:
        return None
    (out, width), grouped = codes.shape, scale.shape[1] > 1
    if scale.shape[0] not in (1, out) or (group % BLOCKS[0] if grouped else bits == 8):
        return None
    block = max(b for b in BLOCKS if group % b == 0) if grouped else _cheapest(width, bits)
    blocks, sign = -(-width // block), 0 if codes.dtype == np.uint8 else 2 ** (bits - 1)

    def spread(t: np.ndarray) -> np.ndarray:
        whole = np.broadcast_to(t, (out, scale.shape[1]))
        return np.repeat(whole, group // block if grouped else blocks, 1)[:, :blocks]

    shifted = np.pad(codes.astype(np.int16) + sign, ((0, 0), (0, blocks * block - width)))
    return _Packed(
        str(node.inputs[0].name),  # type: ignore[union-attr]
        width,
        bits,
        block,
        _bytes(shifted, bits).reshape(out, blocks, -1),
        spread(scale).astype(np.float32),
        _zero_points(spread(zero_point) + sign, bits),
    )


def _zero_points(zeros: np.ndarray, bits: int) -> np.ndarray | None:
    """Packed, every row from a new byte on; None where all are in the middle, as the operator assumes."""
    if (zeros == 2 ** (bits - 1)).all():
        return None
    return _bytes(np.pad(zeros, ((0, 0), (0, -zeros.shape[1] % (8 // bits)))), bits).reshape(len(zeros), -1)


def _bytes(codes: np.ndarray, bits: int) -> np.ndarray:
    return pack(torch.from_numpy(codes.astype(np.uint8)), bits).numpy()


def _write(graph: ir.Graph, constants: Constants, product: ir.Node, weight: _Packed, accuracy: int) -> None:
    held = [
        None if t is None else constants.value(t, f"{weight.name}.{part}")
        for part, t in (("packed", weight.codes), ("scale", weight.scale), ("zero_point", weight.zero_point))
    ]
    bias = product.inputs[2] if len(product.inputs) == 3 else None
    # The fifth input, left out, would reorder the groups.
    inputs = [product.inputs[0], *held, None, bias]
    while inputs[-1] is None:
        inputs.pop()
    sizes = {"K": weight.width, "N": len(weight.codes), "bits": weight.bits, "block_size": weight.block}
    attributes = {**sizes, "accuracy_level": accuracy}
    exchange(graph, product, [ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT, name=product.name)])


def _cheapest(width: int, bits: int) -> int:
    """The block of which a row takes the fewest bytes where it has one scale, which every block then repeats.

    >>> _cheapest(64, 4), _cheapest(172, 4), _cheapest(4096, 4)
    (64, 64, 256)
    """
    return min(BLOCKS, key=lambda block: -(-width // block) * (block * bits // 8 + 4))
