"""Weights of a decoder as OpenVINO constants: codes are stored as they are, and dequantized where they are read."""

from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.errors import EngineError
from tersor.numerics import QTensor
from tersor.numerics.packing import pack

# Number of codes packed at once; a multiple of 8.
_CHUNK = 2**18
_FLOATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def plain(value: Tensor) -> Any:
    """A float tensor as a constant of the same width, read as float32."""
    from openvino import opset13 as ops

    value = value.detach()
    if value.dtype not in _FLOATS:
        value = value.float()
    memory, data = _memory(_FLOATS[value.dtype], value.shape)
    data[:] = value.contiguous().view(-1).view(torch.uint8).numpy()
    constant = ops.constant(memory, shared_memory=True)
    return constant if value.dtype == torch.float32 else ops.convert(constant, "f32")


def held(name: str, value: Tensor | QTensor, shape: tuple[int, ...], transposed: bool) -> Any:
    """A float weight as the constant that ``plain`` returns, never transposed; a quantized weight as ``Codes``.

    Raises:
        EngineError: a shape other than ``shape``, or an unsupported format.
    """
    if tuple(value.shape) != tuple(shape):
        raise EngineError(
            f"{name} has the shape {tuple(value.shape)}, the model wants {tuple(shape)}: use this model's own weights"
        )
    if isinstance(value, Tensor):
        return plain(value)
    if value.spec.format.kind == "float" and value.spec.format.bits == 16 and bool((value.scale == 1).all()):
        return plain(value.codes)
    return Codes(name, value, transposed)


class Codes:
    """A quantized weight, whose codes are stored once for all consumers.

    Codes with zero points are stored unsigned, as OpenVINO's kernels require. A group size that does not divide the
    width is replaced by the greatest common divisor of the two, and the scales are repeated.

    Raises:
        EngineError: a format that is neither integers nor levels.

    >>> from tersor.numerics import QuantSpec, quantize_tensor
    >>> value = quantize_tensor(torch.randn(4, 64), QuantSpec("int4", "group:32"))
    >>> codes = Codes("w", value)
    >>> codes.kind, codes.constant.get_byte_size(), list(codes.read().get_output_shape(0))
    ('i4', 128, [4, 64])
    """

    def __init__(self, name: str, value: QTensor, transposed: bool = False) -> None:
        if value.spec.format.kind == "float" or value.spec.format.bits > 8:
            raise EngineError(
                f"{name} is quantized to {value.spec.format}: OpenVINO's decoder keeps integers of up to 8 bits; "
                "dequantize it, or choose int4 or int8"
            )
        codes, scale, zero = value.codes, _like(value.scale, value.codes), _like(value.zero_point, value.codes)
        if transposed:
            codes, scale, zero = codes.mT, scale.mT, zero.mT
        self.shape = codes.shape
        axis, size = _blocked(scale, codes.shape, value.spec.block)
        if axis is not None:
            codes = codes.unflatten(axis, (-1, size))
            scale, zero = (_regrouped(t, axis, size, value.spec.block, codes) for t in (scale, zero))
        self.scale = scale.float()
        self.kind, offset = _stored_as(value)
        self.zero = (zero.float() + offset) if bool(zero.any()) else None
        self.constant = _packed(codes, self.kind, offset)

    def read(self) -> Any:
        """The weight as float32, in operators that the plugin recognises and fuses into one kernel."""
        from openvino import opset13 as ops

        found = ops.convert(self.constant, "f32")
        if self.zero is not None:
            found = ops.subtract(found, self._zero_point())
        found = ops.multiply(found, ops.constant(self.scale.contiguous().numpy()))
        if found.get_output_shape(0) != list(self.shape):
            found = ops.reshape(found, ops.constant(np.array(self.shape)), False)
        return found

    def _zero_point(self) -> Any:
        """The zero point, in the codes' type."""
        from openvino import opset13 as ops

        assert self.zero is not None
        return ops.convert(_packed(self.zero.to(torch.int16), self.kind), "f32")


def _like(t: Tensor, codes: Tensor) -> Tensor:
    return t.reshape([1] * codes.ndim) if t.ndim == 0 else t


def _stored_as(value: QTensor) -> tuple[str, int]:
    """The stored type of the codes, and the offset added to them."""
    bits = 4 if value.spec.format.bits <= 4 else 8
    if not value.spec.format.signed:
        return f"u{bits}", 0
    return (f"u{bits}", 2 ** (bits - 1)) if bool(value.zero_point.any()) else (f"i{bits}", 0)


def _blocked(scale: Tensor, shape: torch.Size, block: int) -> tuple[int | None, int]:
    """The dimension that is divided into groups, or None, and the size of equal groups."""
    for axis, (have, want) in enumerate(zip(scale.shape, shape, strict=True)):
        if have not in (1, want):
            return axis, gcd(block, want)
    return None, 0


def _regrouped(t: Tensor, axis: int, size: int, block: int, codes: Tensor) -> Tensor:
    if t.shape[axis] > 1:
        t = t.repeat_interleave(block // size, axis).narrow(axis, 0, codes.shape[axis])
    return t.unsqueeze(axis + 1)


def _packed(codes: Tensor, kind: str, offset: int = 0) -> Any:
    """A constant of codes plus ``offset``, made in chunks, since large scratch memory is not released at once."""
    from openvino import opset13 as ops

    memory, data = _memory(kind, codes.shape)
    bits, flat = int(kind[1:]), codes.contiguous().view(-1)
    for start in range(0, flat.numel(), _CHUNK):
        chunk = pack(flat[start : start + _CHUNK].to(torch.int16) + offset, bits).numpy()
        place = start * bits // 8
        data[place : place + len(chunk)] = chunk
    return ops.constant(memory, shared_memory=True)


def _memory(kind: str, shape: torch.Size) -> tuple[Any, np.ndarray]:
    """Memory that OpenVINO owns, and its bytes, since a constant would outlive an array's memory."""
    import openvino as ov

    memory = ov.Tensor(getattr(ov.Type, kind), ov.Shape(list(shape)))
    return memory, memory.data.reshape(-1).view(np.uint8)
