"""Fake quantization as Tersor's own operators, which every engine lowers to its own.

``torch.export`` keeps them under their names in ``torch.ops.tersor``. PyTorch's fused
``fake_quantize_per_tensor_affine`` is not used: it multiplies by 1/scale, which near a tie rounds differently from the
division in ONNX Runtime and this package, and on a CPU it is several times slower than the four passes below.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.numerics.formats import FORMATS
from tersor.numerics.qtensor import sign, wide
from tersor.numerics.ranges import expand
from tersor.numerics.spec import QuantSpec


def fake_quantize(
    x: Float[Tensor, "..."], scale: Float[Tensor, "..."], zero_point: Float[Tensor, "..."], spec: QuantSpec
) -> Float[Tensor, "..."]:
    """Quantize ``x`` with ``spec``, rounding to nearest, and dequantize it; keeps the shape and dtype of ``x``.

    The gradient is straight-through: 1 inside the range, 0 outside (Bengio et al., arXiv 1308.3432).

    >>> x = torch.tensor([0.3, 5.0], requires_grad=True)
    >>> y = fake_quantize(x, torch.tensor(0.25), torch.tensor(0.0), QuantSpec("int4"))
    >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
    ([0.25, 1.75], [1.0, 0.0])
    """
    if spec.format.kind == "float" or spec.format.name == "binary":
        return torch.ops.tersor.cast(x, spec.format.name, expand(scale, x.shape, spec.block))
    return torch.ops.tersor.fake_quantize(x, scale, zero_point, spec.low, spec.high, spec.block)


@torch.library.custom_op(
    "tersor::fake_quantize",
    mutates_args=(),
    schema="(Tensor x, Tensor scale, Tensor zero_point, int low, int high, int block) -> Tensor",
)
def fake_quantize_op(x, scale, zero_point, low, high, block):
    """``(clamp(round(x/scale) + zero_point, low, high) − zero_point)·scale``, ties to even, in x's dtype."""
    if scale.numel() == 1 and zero_point.numel() == 1:
        step, zero = scale.item(), zero_point.item()
        out = wide(x).div(step).round_().clamp_(low - zero, high - zero).mul_(step)
        return out.to(x.dtype)
    step, zero = expand(scale, x.shape, block), expand(zero_point, x.shape, block)
    return wide(x).div(step).round_().add_(zero).clamp_(low, high).sub_(zero).mul_(step).to(x.dtype)


@fake_quantize_op.register_fake
def _(x, scale, zero_point, low, high, block):
    return torch.empty_like(x)


def _save_for_fake_quantize(ctx, inputs, output):
    x, scale, zero_point, ctx.low, ctx.high, ctx.block = inputs
    ctx.save_for_backward(x, scale, zero_point)


def _fake_quantize_backward(ctx, gradient):
    x, scale, zero_point = ctx.saved_tensors
    step, zero = expand(scale, x.shape, ctx.block), expand(zero_point, x.shape, ctx.block)
    code = (wide(x) / step).round() + zero
    inside = (code >= ctx.low) & (code <= ctx.high)
    return gradient * inside, None, None, None, None, None


fake_quantize_op.register_autograd(_fake_quantize_backward, setup_context=_save_for_fake_quantize)


@torch.library.custom_op(
    "tersor::dequantize",
    mutates_args=(),
    schema="(Tensor codes, Tensor scale, Tensor zero_point, int block) -> Tensor",
)
def dequantize_op(codes, scale, zero_point, block):
    """``(codes − zero_point)·scale`` in float32: a stored weight, exactly as deployed."""
    step, zero = expand(scale, codes.shape, block), expand(zero_point, codes.shape, block)
    return (codes.float() - zero) * step


@dequantize_op.register_fake
def _(codes, scale, zero_point, block):
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.custom_op(
    "tersor::cast", mutates_args=(), schema="(Tensor x, str format, Tensor scale) -> Tensor"
)
def cast_op(x, format, scale):
    """Cast ``x/scale`` to a float format (saturating) or to binary's ±1, times ``scale``, in x's dtype."""
    y = wide(x) / scale
    if format == "binary":
        y = sign(y)
    else:
        target = FORMATS[format]
        y = y.clamp_(target.low, target.high).to(target.dtype).to(y.dtype)
    return (y * scale).to(x.dtype)


@cast_op.register_fake
def _(x, format, scale):
    if format not in FORMATS:
        raise ValueError(f"no format {format!r:.100}")
    return torch.empty_like(x)


def _save_for_cast(ctx, inputs, output):
    x, ctx.format, scale = inputs
    ctx.save_for_backward(x, scale)


def _cast_backward(ctx, gradient):
    x, scale = ctx.saved_tensors
    return gradient * ((wide(x) / scale).abs() <= FORMATS[ctx.format].high), None, None


cast_op.register_autograd(_cast_backward, setup_context=_save_for_cast)


@torch.library.custom_op(
    "tersor::quantize_rows", mutates_args=(), schema="(Tensor x, int high, int block) -> Tensor"
)
def quantize_rows_op(x, high, block):
    """Fake quantization to ±``high`` with scales computed from ``x``, in x's dtype.

    One scale for ``block`` neighbours of the last dimension (0: for the whole row, a token), as an engine computes when
    it quantizes activations at run time.
    """
    y = wide(x)
    width = y.shape[-1]
    block = min(block, width) or width
    missing = -width % block
    rows = torch.nn.functional.pad(y, (0, missing)).unflatten(-1, (-1, block))
    scale = rows.abs().amax(-1, keepdim=True).clamp_min_(1e-30) / high
    return (rows / scale).round_().mul_(scale).flatten(-2)[..., :width].to(x.dtype).contiguous()


@quantize_rows_op.register_fake
def _(x, high, block):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _quantize_rows_backward(ctx, gradient):
    return gradient, None, None


quantize_rows_op.register_autograd(_quantize_rows_backward)


@torch.library.custom_op("tersor::quantize_whole", mutates_args=(), schema="(Tensor x, int high) -> Tensor")
def quantize_whole_op(x, high):
    """Fake quantization to codes 0…``high``, with scale and zero point computed from all of ``x``, in x's dtype.

    The range is widened to include 0, which is exactly representable, as in ONNX's DynamicQuantizeLinear.
    """
    y = wide(x)
    if y.numel() == 0:
        return x.clone(memory_format=torch.contiguous_format)
    low, top = y.amin().clamp_max(0.0), y.amax().clamp_min(0.0)
    scale = ((top - low) / high).clamp_min(1e-30)
    zero = (-low / scale).round_().clamp_(0, high)
    return (y / scale).round_().add_(zero).clamp_(0, high).sub_(zero).mul_(scale).to(x.dtype).contiguous()


@quantize_whole_op.register_fake
def _(x, high):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _quantize_whole_backward(ctx, gradient):
    return gradient, None


quantize_whole_op.register_autograd(_quantize_whole_backward)
