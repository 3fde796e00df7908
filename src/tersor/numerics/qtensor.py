"""Ranges to scales, tensors to codes, and back. Shapes: see ``expand``."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from tersor.errors import NumericsError
from tersor.numerics.packing import pack, packed_bytes, unpack
from tersor.numerics.spec import QuantSpec

Scale = Float[Tensor, "..."]
Codes = Shaped[Tensor, "..."]
Bound = Scale | float | int


def expand(t: Tensor, shape: tuple[int, ...] | torch.Size, block: int) -> Tensor:
    """A scale (or zero point) made to broadcast over a tensor of ``shape``.

    A scale has no dimension, or as many as its tensor, and each of them is 1 (shared), whole (one each)
    or ``ceil(n / block)``: one for ``block`` neighbours, where the last group may be ragged.

    Raises NumericsError for any other shape.

    >>> expand(torch.tensor([[1.0, 2.0]]), (3, 5), block=3)
    tensor([[1., 1., 1., 2., 2.]])
    """
    if t.ndim == 0:
        return t
    if t.ndim != len(shape):
        raise _misfit(t, shape, block)
    for dim, (have, want) in enumerate(zip(t.shape, shape, strict=True)):
        if have in (1, want):
            continue
        if block < 1 or have != -(-want // block):
            raise _misfit(t, shape, block)
        t = t.repeat_interleave(block, dim).narrow(dim, 0, want)
    return t


def _misfit(t: Tensor, shape: tuple[int, ...] | torch.Size, block: int) -> NumericsError:
    return NumericsError(
        f"a scale of shape {tuple(t.shape)}, in groups of {block}, does not fit a tensor of shape "
        f"{tuple(shape)}: Granularity.scale_shape tells the shape that does"
    )


def reduce_range(x: Float[Tensor, "..."], spec: QuantSpec) -> tuple[Scale, Scale]:
    """Minimum and maximum of ``x`` for each scale that ``spec`` gives it, in the scale's shape.

    Raises NumericsError if ``x`` is empty; NaN stays NaN, and ``qparams`` refuses it.

    >>> x = torch.tensor([[1.0, -2.0, 5.0], [0.0, 3.0, 4.0]])
    >>> low, high = reduce_range(x, QuantSpec("int8", "channel"))
    >>> low.tolist(), high.tolist()
    ([[-2.0], [0.0]], [[5.0], [4.0]])
    """
    if x.numel() == 0:
        raise NumericsError(f"a tensor of shape {tuple(x.shape)} is empty, it has no range: leave it float")
    shape = spec.granularity.scale_shape(x.shape)
    shared = [dim for dim, count in enumerate(shape) if count == 1]
    if spec.block:
        blocked = 0 if spec.granularity.kind == "filters" else 1
        x = _grouped(x, blocked, spec.block)
        shared = [blocked + 1, *(dim + (dim > blocked) for dim in shared if dim != blocked)]
    low, high = (x.amin(shared), x.amax(shared)) if shared else (x, x)
    return low.reshape(shape), high.reshape(shape)


def _grouped(x: Tensor, dim: int, block: int) -> Tensor:
    """``dim`` split into (groups, block); a ragged last group is filled up with its own last element."""
    groups = -(-x.shape[dim] // block)
    if groups * block != x.shape[dim]:
        index = torch.arange(groups * block, device=x.device).clamp(max=x.shape[dim] - 1)
        x = x.index_select(dim, index)
    return x.unflatten(dim, (groups, block))


def qparams(low: Bound, high: Bound, spec: QuantSpec) -> tuple[Scale, Scale]:
    """Scale and zero point of a range, both float32; the zero point holds whole numbers.

    The range is widened to hold 0, so that 0 is represented exactly. Integers: symmetric,
    ``s = max|x| / high``; asymmetric, ``s = (high − low) / (codes − 1)`` and ``z = low_code − round(low/s)``.
    Floats: a plain cast (``s = 1``) where the format's own range suffices, ``s = max|x| / limit`` for FP8 and
    beyond the range.

    The scale is what is stored: already rounded to ``spec.scale_dtype``, upwards in a 16-bit one, so that
    the range stays covered, and never below its smallest normal number. A range that is all zero gets the
    largest scale of its neighbours (1 if there is none): any is right for its codes, and this one also serves
    the bias that an integer engine stores on input scale × weight scale.

    Raises:
        NumericsError: NaN or infinity, low > high, a scale too large for ``scale_dtype``, or negative
            values where symmetric unsigned codes have none.

    Jacob et al., arXiv 1712.05877; Krishnamoorthi, arXiv 1806.08342.

    >>> scale, zero_point = qparams(-700.0, 1000.0, QuantSpec("int8", symmetric=False))
    >>> round(scale.item(), 3), zero_point.item()
    (6.667, -23.0)
    """
    low, high = _checked_range(low, high, spec)
    scale = torch.maximum(-low, high) / spec.high if spec.symmetric else (high - low) / (spec.high - spec.low)
    if spec.format.kind == "float" and spec.format.bits > 8:
        scale = scale.clamp(min=1.0)
    scale = _stored(scale, spec.scale_dtype)
    if spec.symmetric:
        return scale, torch.zeros_like(scale)
    zero_point = (spec.low - low / scale.double()).round().clamp(spec.low, spec.high)
    return scale, zero_point.float()


def _checked_range(low: Bound, high: Bound, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    low, high = torch.as_tensor(low).double(), torch.as_tensor(high).double()
    for name, bound in (("low", low), ("high", high)):
        if not bound.isfinite().all():
            bad = bound[~bound.isfinite()].reshape(-1)[0].item()
            raise NumericsError(f"the {name} end of a range is {bad}: look for NaN or infinity in the data")
    if (low > high).any():
        raise NumericsError("a range has low > high: were the two exchanged?")
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if spec.symmetric and not spec.format.signed and (low < 0).any():
        raise NumericsError(
            f"{spec} has no negative values, the range begins at {low.min().item():.6g}: "
            "use symmetric=False or a signed format"
        )
    return low, high


def _stored(scale: Tensor, dtype_name: str) -> Tensor:
    """``scale`` (float64) as the file holds it, in float32: positive, normal, finite."""
    dtype = getattr(torch, dtype_name)
    info = torch.finfo(dtype)
    dead = scale == 0
    if dead.any():
        fill = scale.max()
        scale = torch.where(dead, fill if fill > 0 else torch.ones_like(fill), scale)
    scale = scale.clamp(min=info.smallest_normal)
    stored = scale.to(dtype)
    if dtype != torch.float32:
        # Half a step on top before rounding to nearest makes it the next one above.
        stored = torch.where(stored < scale, (scale * (1 + info.eps / 2)).to(dtype), stored)
    if not stored.isfinite().all():
        raise NumericsError(f"a scale of {scale.max().item():.4g} overflows {dtype_name}: use float32")
    return stored.float()


def quantize(
    x: Float[Tensor, "..."],
    scale: Scale,
    zero_point: Scale,
    spec: QuantSpec,
    generator: torch.Generator | None = None,
) -> Codes:
    """The codes of ``x``: ``clamp(round(x / scale) + zero_point, low, high)`` in the format's dtype.

    Nearest rounds ties to even. Stochastic rounds up with the probability of the fraction, so that the mean
    over many draws is ``x`` inside the range; it wants the ``generator``, so that a run can be repeated.

    Raises NumericsError for NaN, for a scale that does not fit, and if stochastic without a generator.

    >>> x, spec = torch.tensor([-700.0, 0.0, 1000.0]), QuantSpec("int8", symmetric=False)
    >>> quantize(x, torch.tensor(1700 / 255), torch.tensor(-23.0), spec)
    tensor([-128,  -23,  127], dtype=torch.int8)
    """
    if x.isnan().any():
        raise NumericsError(f"a tensor of shape {tuple(x.shape)} holds NaN, which has no code: clean it")
    noise = None
    if spec.rounding == "stochastic":
        if generator is None:
            raise NumericsError("stochastic rounding needs generator=torch.Generator().manual_seed(…)")
        noise = torch.rand(x.shape, generator=generator, device=x.device)
    y = wide(x) / expand(scale, x.shape, spec.block)
    if spec.format.name == "binary":
        # Two levels, 2 apart; 0 goes up.
        up = y >= 0 if noise is None else y + 1 > 2 * noise
        return torch.where(up, 1, -1).to(torch.int8)
    if spec.format.kind == "float":
        y = y.clamp(spec.low, spec.high)
        return _cast(y, noise, spec)
    y = y.round() if noise is None else _dithered(y, noise)
    return (y + expand(zero_point, x.shape, spec.block)).clamp(spec.low, spec.high).to(spec.format.dtype)


def wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``x`` in the dtype that is computed in: float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def _dithered(y: Tensor, noise: Tensor) -> Tensor:
    """``y`` rounded up with the probability of its fraction; the sum ``y + noise`` would itself round."""
    whole = y.floor()
    return whole + (noise < y - whole)


def _cast(y: Tensor, noise: Tensor | None, spec: QuantSpec) -> Tensor:
    """``y`` in a float format; stochastically: dithered in units of its own last place."""
    if noise is None:
        return y.to(spec.format.dtype)
    exponent = (torch.frexp(y).exponent - 1).clamp(min=spec.format.smallest_exponent)
    place = exponent - spec.format.mantissa
    return torch.ldexp(_dithered(torch.ldexp(y, -place), noise), place).to(spec.format.dtype)


@dataclass(frozen=True)
class QTensor:
    """A quantized tensor: ``x ≈ (codes − zero_point) · scale``.

    Args:
        codes: unpacked, in the shape of ``x`` and the dtype of the format.
        scale, zero_point: float32, in the shape that ``expand`` describes; the scale is positive.
        spec: what the codes mean.
    """

    codes: Codes
    scale: Scale
    zero_point: Scale
    spec: QuantSpec

    @property
    def shape(self) -> torch.Size:
        """The shape of ``x``."""
        return self.codes.shape

    def dequantize(self) -> Float[Tensor, "..."]:
        """The float32 values that the codes stand for."""
        scale, zero_point = (expand(t, self.shape, self.spec.block) for t in (self.scale, self.zero_point))
        return (self.codes.float() - zero_point) * scale

    @property
    def nbytes(self) -> int:
        """Bytes that a file needs: packed codes, scales as stored, and packed zero points if asymmetric."""
        bits = self.spec.format.bits
        scales = self.scale.numel() * getattr(torch, self.spec.scale_dtype).itemsize
        zeros = 0 if self.spec.symmetric else packed_bytes(self.zero_point.numel(), bits)
        return packed_bytes(self.codes.numel(), bits) + scales + zeros

    def packed(self) -> UInt8[Tensor, " bytes"]:
        """The codes alone as bytes (``pack``; floats byte for byte, little-endian)."""
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
        """What ``packed`` was made from."""
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
    """``x`` quantized over the range [low, high], by default its own minimum and maximum.

    Binary puts its two levels at ± the mean of |x| instead, the best there is (XNOR-Net, arXiv 1603.05279).

    Raises NumericsError as ``qparams`` and ``quantize`` do.

    >>> q = quantize_tensor(torch.tensor([[1.0, -3.5], [0.0, 127.0]]), QuantSpec("int8", "channel"))
    >>> q.codes.tolist(), q.nbytes
    ([[36, -127], [0, 127]], 12)
    """
    if (low is None) != (high is None):
        raise NumericsError("a range has two ends: give both low and high, or neither")
    if low is None or high is None:
        low, high = reduce_range(x, spec)
        if spec.format.name == "binary":
            high = _mean_magnitude(x, low.shape, spec)
            low = -high
    scale, zero_point = qparams(low, high, spec)
    return QTensor(quantize(x, scale, zero_point, spec, generator), scale, zero_point, spec)


def _mean_magnitude(x: Tensor, shape: torch.Size, spec: QuantSpec) -> Tensor:
    """The mean of |x| for each scale; a ragged group counts only what it has."""
    owner = torch.arange(shape.numel(), device=x.device).reshape(shape)
    owner = expand(owner, x.shape, spec.block).broadcast_to(x.shape).reshape(-1)
    total = torch.zeros(shape.numel(), dtype=torch.float64, device=x.device)
    total = total.index_add(0, owner, x.detach().abs().double().reshape(-1))
    return (total / owner.bincount(minlength=shape.numel())).reshape(shape)
