"""Quantize tensors to codes, and dequantize them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from tersor.errors import NumericsError
from tersor.numerics.finite import has_nan
from tersor.numerics.formats import NumberFormat
from tersor.numerics.packing import pack, unpack
from tersor.numerics.ranges import Bound, Scale, expand, qparams, reduce_range
from tersor.numerics.spec import QuantSpec

Codes = Shaped[Tensor, "..."]


def quantize(
    x: Float[Tensor, "..."],
    scale: Scale,
    zero_point: Scale,
    spec: QuantSpec,
    generator: torch.Generator | None = None,
) -> Codes:
    """Quantize ``x``: ``clamp(round(x / scale) + zero_point, low, high)`` in the format's dtype.

    Nearest rounds ties to even. Stochastic rounds up with a probability equal to the fraction, so the mean over many
    draws is ``x`` inside the range; it needs the ``generator``, for reproducibility.

    Raises NumericsError for NaN, for a scale whose shape does not fit, and for stochastic rounding without a generator.

    >>> x, spec = torch.tensor([-700.0, 0.0, 1000.0]), QuantSpec("int8", symmetric=False)
    >>> quantize(x, torch.tensor(1700 / 255), torch.tensor(-23.0), spec)
    tensor([-128,  -23,  127], dtype=torch.int8)
    """
    x = wide(x.detach())
    if has_nan(x):
        raise NumericsError(f"a tensor of shape {tuple(x.shape)} contains NaN, which has no code: remove it")
    noise = None
    if spec.rounding == "stochastic":
        if generator is None:
            raise NumericsError("stochastic rounding needs generator=torch.Generator().manual_seed(…)")
        # Drawn where the generator is, so that every device rounds by the same numbers.
        noise = torch.rand(x.shape, generator=generator, device=generator.device).to(x.device)
    y = x / expand(scale, x.shape, spec.block)
    if spec.format.name == "binary":
        # Two levels, 2 apart; 0 rounds up.
        up = y >= 0 if noise is None else y + 1 > 2 * noise
        return torch.where(up, 1, -1).to(torch.int8)
    if spec.format.kind == "float":
        return _cast(y.clamp_(spec.low, spec.high), noise, spec)
    y = y.round_() if noise is None else _round_stochastically(y, noise)
    return y.add_(expand(zero_point, x.shape, spec.block)).clamp_(spec.low, spec.high).to(spec.format.dtype)


def wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``x`` in at least float32, for the computation."""
    return x if x.dtype == torch.float64 else x.float()


def sign(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """1 or −1 by the sign of ``x``; 0 counts as positive, NaN stays NaN."""
    return torch.where(x >= 0, 1.0, torch.where(x < 0, -1.0, x))


def _round_stochastically(y: Tensor, noise: Tensor) -> Tensor:
    """Round ``y`` up with a probability equal to its fraction; ``y + noise`` would itself be rounded."""
    whole = y.floor()
    return whole + (noise < y - whole)


def _cast(y: Tensor, noise: Tensor | None, spec: QuantSpec) -> Tensor:
    """Cast ``y`` to a float format; stochastically, if there is noise, in units of its last place."""
    if noise is None:
        return y.to(spec.format.dtype)
    exponent = (torch.frexp(y).exponent - 1).clamp(min=spec.format.smallest_exponent)
    last_place = exponent - spec.format.mantissa
    return torch.ldexp(_round_stochastically(torch.ldexp(y, -last_place), noise), last_place).to(spec.format.dtype)


@dataclass(frozen=True)
class QTensor:
    """A quantized tensor: ``x ≈ (codes − zero_point) · scale``.

    Args:
        codes: unpacked, in the shape of ``x`` and the dtype of the format, none outside the format's range.
        scale: float32, positive and finite, in the granularity's shape (or without dimensions, for one scale per
            tensor).
        zero_point: float32, in the shape of the scale: integers in the range of the codes, 0 if the spec is symmetric.
        spec: format, granularity and symmetry of the codes.

    Raises:
        NumericsError: one of these is violated. Values are checked once, in less than 1 % of the time that rounding to
            nearest takes; meta tensors are not checked.

    >>> QTensor(torch.tensor([9], dtype=torch.int8), torch.ones(()), torch.zeros(()), QuantSpec("int4"))
    Traceback (most recent call last):
    tersor.errors.NumericsError: codes from 9 to 9 are outside int4, which has -8 to 7: clamp them, or ...
    """

    codes: Codes
    scale: Scale
    zero_point: Scale
    spec: QuantSpec

    def __post_init__(self) -> None:
        _check_layout(self)
        if not self.codes.is_meta:
            _check_codes(self.codes, self.spec.format)
            _check_grid(self.scale, self.zero_point, self.spec)

    @classmethod
    def trusted(cls, codes: Codes, scale: Scale, zero_point: Scale, spec: QuantSpec) -> "QTensor":
        """Build a QTensor from the parts of an earlier one, without checks.

        For modules that store the parts as buffers and combine them at every call, also during tracing, when values are
        unavailable.
        """
        made = object.__new__(cls)
        for name, value in (("codes", codes), ("scale", scale), ("zero_point", zero_point), ("spec", spec)):
            object.__setattr__(made, name, value)
        return made

    @property
    def shape(self) -> torch.Size:
        """The shape of ``x``."""
        return self.codes.shape

    def dequantize(self) -> Float[Tensor, "..."]:
        """The float32 values of the codes."""
        scale, zero_point = (expand(t, self.shape, self.spec.block) for t in (self.scale, self.zero_point))
        return (self.codes.float() - zero_point) * scale

    def rows(self, chosen: slice) -> "QTensor":
        """A slice of rows (dimension 0) with their scales.

        >>> q = quantize_tensor(torch.tensor([[1.0, 2.0], [4.0, 8.0]]), QuantSpec("int8", "channel"))
        >>> torch.equal(q.rows(slice(1, 2)).dequantize(), q.dequantize()[1:])
        True
        """
        scales = (t[chosen] if t.ndim and len(t) == len(self.codes) else t for t in (self.scale, self.zero_point))
        scale, zero_point = scales
        return QTensor(self.codes[chosen], scale, zero_point, self.spec)

    def to(self, device: torch.device | str) -> "QTensor":
        """The same codes on another device.

        >>> quantize_tensor(torch.ones(2), QuantSpec("int8")).to("meta").codes.device
        device(type='meta')
        """
        codes, scale, zero_point = (t.to(device) for t in (self.codes, self.scale, self.zero_point))
        return QTensor.trusted(codes, scale, zero_point, self.spec)

    @property
    def nbytes(self) -> int:
        """Bytes in a file: packed codes, scales as stored, and packed zero points if asymmetric."""
        return self.spec.nbytes(self.shape)

    def packed(self) -> UInt8[Tensor, " bytes"]:
        """The codes as bytes (``pack``; floats as they are, little-endian)."""
        if self.spec.format.kind == "float":
            return self.codes.contiguous().reshape(-1).view(torch.uint8)
        return pack(self.codes, self.spec.format.bits)

    @classmethod
    def unpacked(
        cls,
        packed: UInt8[Tensor, " bytes"],
        shape: tuple[int, ...] | torch.Size,
        scale: Scale,
        zero_point: Scale,
        spec: QuantSpec,
    ) -> "QTensor":
        """Invert ``packed``."""
        if spec.format.kind == "float":
            codes = packed.clone().view(spec.format.dtype)
        else:
            codes = unpack(packed, spec.format.bits, torch.Size(shape).numel(), spec.format.signed)
        return cls(codes.reshape(shape), scale, zero_point, spec)


def quantize_tensor(
    x: Float[Tensor, "..."],
    spec: QuantSpec,
    low: Bound | None = None,
    high: Bound | None = None,
    generator: torch.Generator | None = None,
) -> QTensor:
    """Quantize ``x`` over the range [low, high], by default its minimum and maximum; numbers apply to every scale.

    Binary puts its two levels at ± the mean of |x|, which is optimal (XNOR-Net, arXiv 1603.05279).

    Raises NumericsError as ``qparams`` and ``quantize`` do.

    >>> q = quantize_tensor(torch.tensor([[1.0, -3.5], [0.0, 127.0]]), QuantSpec("int8", "channel"))
    >>> q.codes.tolist(), q.nbytes
    ([[36, -127], [0, 127]], 12)
    """
    if (low is None) != (high is None):
        raise NumericsError("a range has two ends: pass both low and high, or neither")
    if low is None or high is None:
        low, high = reduce_range(x, spec)
        if spec.format.name == "binary":
            high = _mean_magnitude(x, low.shape, spec)
            low = -high
    scale, zero_point = qparams(low, high, spec)
    if scale.ndim == 0 and spec.granularity.kind != "tensor":
        shape = spec.granularity.scale_shape(x.shape)
        scale, zero_point = scale.expand(shape).contiguous(), zero_point.expand(shape).contiguous()
    return QTensor(quantize(x, scale, zero_point, spec, generator), scale, zero_point, spec)


def _mean_magnitude(x: Tensor, shape: torch.Size, spec: QuantSpec) -> Tensor:
    """The mean of |x| for each scale; a partial group averages over its own elements."""
    owner = torch.arange(shape.numel(), device=x.device).reshape(shape)
    owner = expand(owner, x.shape, spec.block).broadcast_to(x.shape).reshape(-1)
    total = torch.zeros(shape.numel(), dtype=torch.float64, device=x.device)
    total = total.index_add(0, owner, x.detach().abs().double().reshape(-1))
    return (total / owner.bincount(minlength=shape.numel())).reshape(shape)


def _check_layout(q: QTensor) -> None:
    """Check dtypes and shapes."""
    codes, spec = q.codes, q.spec
    if codes.dtype != spec.format.dtype:
        raise NumericsError(f"codes are {codes.dtype}, those of {spec.format} are {spec.format.dtype}: convert them")
    wanted = spec.granularity.scale_shape(codes.shape)
    for name, t in (("scale", q.scale), ("zero point", q.zero_point)):
        if t.dtype != torch.float32:
            raise NumericsError(f"a {name} is {t.dtype}, it must be torch.float32: convert it")
        if tuple(t.shape) != wanted and not (t.ndim == 0 and torch.Size(wanted).numel() == 1):
            raise NumericsError(
                f"a {name} of shape {tuple(t.shape)} does not fit codes of shape {tuple(codes.shape)} per "
                f"{spec.granularity}, which need {wanted}"
            )


def _check_codes(codes: Tensor, format: NumberFormat) -> None:
    """Check that no code is outside the format, in one pass; formats that fill their dtype need none."""
    if codes.numel() == 0:
        return
    if format.bits == 8 and format.kind == "float":
        # PyTorch has no minimum for FP8; the bits below the sign are ordered like the magnitudes.
        largest = torch.tensor(format.high).to(format.dtype).view(torch.uint8)
        if (codes.contiguous().view(torch.uint8) & 0x7F).amax() > largest:
            raise NumericsError(f"codes of {format} contain NaN or infinity: remove them before quantization")
        return
    if format.kind == "int" and (format.low, format.high) == _limits(format.dtype):
        return
    low, high = (one.item() for one in codes.aminmax())
    if not (low >= format.low and high <= format.high):
        if format.kind == "float":
            raise NumericsError(f"codes of {format} contain NaN or infinity: remove them before quantization")
        raise NumericsError(
            f"codes from {low} to {high} are outside {format}, which has {format.low} to {format.high}: "
            "clamp them, or use a wider format"
        )
    if format.name == "binary" and codes.abs().amin() == 0:
        raise NumericsError("0 is not a binary code: these are -1 and 1")


def _limits(dtype: torch.dtype) -> tuple[int, int]:
    info = torch.iinfo(dtype)
    return info.min, info.max


def _check_grid(scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> None:
    """Check that scales are positive and finite, and that zero points are codes."""
    if scale.numel() == 0:
        return
    low, high = (one.item() for one in scale.aminmax())
    # Comparisons with NaN are False.
    if not (low > 0 and high < torch.inf):
        wrong = scale[~((scale > 0) & (scale < torch.inf))]
        raise NumericsError(
            f"{wrong.numel()} of {scale.numel()} scales are not positive and finite, the first is "
            f"{wrong[0].item():.6g}: a channel that is all zero takes any positive scale"
        )
    low, high = (one.item() for one in zero_point.aminmax())
    if spec.symmetric and not low == high == 0:
        raise NumericsError(f"zero points from {low:g} to {high:g} in a symmetric spec ({spec}): use symmetric=False")
    if not (low >= spec.format.low and high <= spec.format.high) or not torch.equal(zero_point, zero_point.round()):
        raise NumericsError(
            f"zero points from {low:g} to {high:g} are not all codes of {spec.format}, whole numbers from "
            f"{spec.format.low} to {spec.format.high}: zero must be represented exactly"
        )
