"""The integer product in graphs: a custom operator, preserved by ``torch.export`` and ``torch.compile``.

Eager code calls the backend directly, since an operator in Python costs as much as a small product.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.utils.weak import WeakTensorKeyDictionary

from tersor.network.quantized.integer import Packed, wide_codes
from tersor.numerics import QuantSpec

is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[reportPrivateImportUsage]
_PACKED = WeakTensorKeyDictionary()


def making_graph() -> bool:
    """Whether operators are being recorded, for export, compilation or a trace, instead of just computed."""
    return torch.compiler.is_compiling() or is_tracing() or torch._C._len_torch_dispatch_stack() > 0


def remember(weight: Tensor, packed: Packed) -> None:
    """Let graphs find the packed layout of a weight."""
    _PACKED[weight] = packed


def integer_product(x: Tensor, weight: Tensor, scale: Tensor, activation: QuantSpec) -> Tensor:
    """``x [rows, in] @ weightᵀ · scale``, without gradient, x quantized at run time, from operators that graphs accept.

    Args:
        weight: int8 codes ``[out, in]``.
        scale: one for every output, or one for all.
    """
    x, shared = x.detach(), activation.granularity.kind == "tensor"
    old = is_tracing() and torch.onnx.is_in_onnx_export()
    product = _in_float if old else torch.ops.tersor.int8_product
    if activation.format.bits == 16:
        high, low, step = wide_codes(x, shared)
        return (product(high, weight, scale, None) * 256.0 + product(low, weight, scale, None)) * step
    along = (0, 1) if shared else 1
    low, high = x.amin(along, keepdim=True), x.amax(along, keepdim=True)
    if activation.symmetric:
        step = torch.maximum(high, -low).clamp(min=1e-30) * (1 / 127)
        return product((x * step.reciprocal()).round().to(torch.int8), weight, scale, None) * step
    low = low.clamp(max=0.0)
    span = high.clamp(min=1e-30) - low
    inverse = 254.0 / span
    shift = (low * inverse).round()
    codes = (x * inverse - shift).round().to(torch.uint8)
    return product(codes, weight, scale, shift) * (span * (1 / 254))


@torch.library.custom_op(
    "tersor::int8_product",
    mutates_args=(),
    schema="(Tensor codes, Tensor weight, Tensor scale, Tensor? shift) -> Tensor",
)
def int8_product_op(codes, weight, scale, shift):
    """``(codes + shift) @ weightᵀ · scale`` in float32, of int8 or uint8 codes ``[rows, in]``; shifts ``[rows, 1]``."""
    packed = _PACKED.get(weight)
    if packed is None or not packed.is_of(weight, scale):
        packed = _PACKED[weight] = Packed(weight, scale)
    sums = packed(codes.contiguous())
    return sums if shift is None else sums.addr_(shift.reshape(-1).expand(len(codes)), packed.sums)


@int8_product_op.register_fake
def _(codes, weight, scale, shift):
    return codes.new_empty((codes.shape[0], weight.shape[0]), dtype=torch.float32)


def _in_float(codes: Tensor, weight: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """For ``torch.onnx.export(dynamo=False)``, which accepts only PyTorch's own operators."""
    codes = codes.float() if shift is None else codes.float() + shift
    return torch.nn.functional.linear(codes, weight.float()) * scale.reshape(-1)


@register_decomposition(torch.ops.tersor.int8_product)
def _in_onnx(codes, weight, scale, shift):
    """For ``torch.onnx.export``, the only reader of this table."""
    shape = (codes.shape[0], weight.shape[0])
    sums = torch.onnx.ops.symbolic("MatMulInteger", (codes, weight.t()), dtype=torch.int32, shape=shape, version=10)
    sums = sums.float()
    if shift is not None:
        sums = sums + shift * weight.float().sum(1)
    return sums * scale.reshape(-1)
