"""Quantized weights of an ONNX file that Tersor wrote, read back."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.numpy_helper import to_array
from torch import Tensor

from tersor.checkpoints.foreign.files import foreign, inside
from tersor.checkpoints.onnx.lstm import GATE_ORDER
from tersor.checkpoints.onnx.qdq import FILE
from tersor.checkpoints.stored import assemble
from tersor.errors import CheckpointError
from tersor.numerics import QTensor, unpack

Weights = Iterator[tuple[str, QTensor]]
_BITS: dict[int, int] = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4}


def read_weights(folder: Path) -> Weights:
    """(name, QTensor) of every weight that ``model.onnx`` stores as integers or FP8 codes.

    Weights of linear layers are [out, in], regardless of the file's layout. Unsigned codes in MatMulNBits become signed
    ones. A weight has the name of the tensor with its codes; equal tensors are stored once, and of weights that differ
    only in their scales, all but the first are named after their operator.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = inside(folder, FILE, CheckpointError)
    with foreign(CheckpointError, f"{path} cannot be read", "save the network again"):
        yield from _weights(onnx.load(str(path)).graph)


def _weights(graph: onnx.GraphProto) -> Weights:
    found, parts, names = _Graph.of(graph), set[tuple[str, ...]](), set[str]()
    for node in graph.node:
        weights = _READERS.get(node.op_type)
        key = tuple(node.input[1:4]) if node.op_type == "MatMulNBits" else tuple(node.input)
        if weights is None or key in parts:
            continue
        parts.add(key)
        for name, qtensor in weights(found, node):
            name = node.name if name in names else name
            names.add(name)
            yield name, qtensor


@dataclass(frozen=True)
class _Graph:
    """The stored tensors by name, and the producer and readers of each value."""

    stored: dict[str, onnx.TensorProto]
    maker: dict[str, onnx.NodeProto]
    readers: dict[str, list[onnx.NodeProto]]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> "_Graph":
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for value in node.input:
                readers.setdefault(value, []).append(node)
        maker = {value: node for node in graph.node for value in node.output}
        return cls({t.name: t for t in graph.initializer}, maker, readers)

    def array(self, name: str) -> np.ndarray:
        return to_array(self.stored[name])

    def follow(self, node: onnx.NodeProto, op: str) -> onnx.NodeProto:
        """The only reader of that type."""
        (reader,) = (n for n in self.readers[node.output[0]] if n.op_type == op)
        return reader


def _dequantized(graph: _Graph, node: onnx.NodeProto) -> Weights:
    """A DequantizeLinear of a stored matrix or tensor; vectors are biases, and other values are activations."""
    source = node.input[0]
    if source not in graph.stored and source in graph.maker and graph.maker[source].op_type == "Cast":
        source = graph.maker[source].input[0]
    if source not in graph.stored or len(graph.stored[source].dims) < 2:
        return
    codes, options = _codes(graph.array(source)), _attributes(node)
    axis, block = options.get("axis", 1) % codes.ndim, options.get("block_size", 0)
    zeros = graph.array(node.input[2]) if len(node.input) > 2 else np.zeros((), np.float32)
    scale, zero_point = (_laid_out(t, codes, axis, block) for t in (graph.array(node.input[1]), zeros))
    if _stored_across(graph, node) and codes.ndim == 2:
        codes, scale, zero_point = codes.t(), scale.t(), zero_point.t()
    zero_point = zero_point.expand_as(scale).contiguous()
    bits = _BITS.get(graph.stored[source].data_type, 8 * codes.dtype.itemsize)
    name = _named(source)
    yield name, assemble(name, codes.contiguous(), scale.contiguous(), zero_point, block, bits)


def _stored_across(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Whether the linear layer that reads a weight expects it as [in, out]."""
    for reader in graph.readers.get(node.output[0], []):
        if reader.op_type in ("MatMul", "Gemm") and reader.input[1] == node.output[0]:
            return not _attributes(reader).get("transB", 0)
    return False


def _laid_out(t: np.ndarray, codes: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point in the shape of ``numerics``: the inverse of ``constants.laid_out``."""
    found = torch.from_numpy(t.astype(np.float32))
    if found.ndim < codes.ndim:
        return found.reshape([-1 if k == axis and found.ndim else 1 for k in range(codes.ndim)])
    if block:
        # ONNX repeats the scale over the axes that are not blocked: the kernel of a convolution.
        for k in range(2, codes.ndim):
            found = found.narrow(k, 0, 1)
    return found


def _packed(graph: _Graph, node: onnx.NodeProto) -> Weights:
    """The weight of a MatMulNBits."""
    options, name = _attributes(node), _named(node.input[1])
    bits, width, count = options["bits"], options["K"], options["N"]
    codes, scale = (torch.from_numpy(graph.array(n).copy()) for n in node.input[1:3])
    blocks = codes.shape[1]
    codes = unpack(codes.reshape(-1), bits, codes.numel() * 8 // bits, signed=False).reshape(count, -1)[:, :width]
    zeros = torch.full((count, blocks), 2.0 ** (bits - 1))
    if len(node.input) > 3 and node.input[3]:
        held = torch.from_numpy(graph.array(node.input[3]).copy()).reshape(-1)
        zeros = unpack(held, bits, held.numel() * 8 // bits, signed=False).reshape(count, -1)[:, :blocks].float()
    signed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    grid = scale.reshape(count, blocks), zeros - 2 ** (bits - 1)
    yield name, assemble(name, signed, *grid, options["block_size"], bits)


def _product(graph: _Graph, node: onnx.NodeProto) -> Weights:
    """The weight of a MatMulInteger, whose result is multiplied by the scales of both sides."""
    if node.input[1] not in graph.stored:
        return
    scales = graph.follow(graph.follow(node, "Cast"), "Mul").input[1]
    (scale,) = (graph.array(n) for n in graph.maker[scales].input if n in graph.stored)
    codes, name = torch.from_numpy(graph.array(node.input[1]).T.copy()), _named(node.input[1])
    steps = torch.from_numpy(scale.copy()).reshape(-1, 1)
    yield name, assemble(name, codes, steps, torch.zeros_like(steps), 0, 8)


def _lstm(graph: _Graph, node: onnx.NodeProto) -> Weights:
    """The weights of a DynamicQuantizeLSTM, of the input and of the state, gates in PyTorch's order."""
    for codes, scale in ((1, 8), (2, 10)):
        rows, steps = graph.array(node.input[codes])[0].T, graph.array(node.input[scale])[0]
        both = [np.concatenate([np.split(t, 4)[k] for k in np.argsort(GATE_ORDER)]) for t in (rows, steps)]
        held, name = torch.from_numpy(both[0]), _named(node.input[codes])
        column = torch.from_numpy(both[1]).reshape(-1, 1)
        yield name, assemble(name, held, column, torch.zeros_like(column), 0, 8)


_READERS: dict[str, Callable[[_Graph, onnx.NodeProto], Weights]] = {
    "DequantizeLinear": _dequantized,
    "MatMulNBits": _packed,
    "MatMulInteger": _product,
    "DynamicQuantizeLSTM": _lstm,
}


def _attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}


def _named(tensor: str) -> str:
    """The name of the weight whose codes are stored as ``tensor``."""
    return re.sub(r"[._]codes_*$", "", tensor.removesuffix(".packed"))


def _codes(array: np.ndarray) -> Tensor:
    """Codes in the dtype used by ``numerics``; narrow integers are widened to 8 bits."""
    kind = array.dtype.name
    if kind.startswith("float8"):
        return torch.from_numpy(array.view(np.uint8).copy()).view(getattr(torch, kind))
    wide = {"int4": np.int8, "uint4": np.uint8}.get(kind, array.dtype)
    return torch.from_numpy(np.ascontiguousarray(array.astype(wide)))
