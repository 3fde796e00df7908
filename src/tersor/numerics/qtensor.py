"""Tensors to codes, and back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from tersor.errors import NumericsError
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
    y = wide(x.detach()) / expand(scale, x.shape, spec.block)
    if spec.format.name == "binary":
        # Two levels, 2 apart; 0 goes up.
        up = y >= 0 if noise is None else y + 1 > 2 * noise
        return torch.where(up, 1, -1).to(torch.int8)
    if spec.format.kind == "float":
        return _cast(y.clamp_(spec.low, spec.high), noise, spec)
    y = y.round_() if noise is None else _dithered(y, noise)
    return y.add_(expand(zero_point, x.shape, spec.block)).clamp_(spec.low, spec.high).to(spec.format.dtype)


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

    def rows(self, chosen: slice) -> "QTensor":
        """Some rows (dimension 0), which take their scales along, or share the one of all.

        >>> q = quantize_tensor(torch.tensor([[1.0, 2.0], [4.0, 8.0]]), QuantSpec("int8", "channel"))
        >>> torch.equal(q.rows(slice(1, 2)).dequantize(), q.dequantize()[1:])
        True
        """
        scales = (t[chosen] if t.ndim and len(t) == len(self.codes) else t for t in (self.scale, self.zero_point))
        scale, zero_point = scales
        return QTensor(self.codes[chosen], scale, zero_point, self.spec)

    @property
    def nbytes(self) -> int:
        """Bytes that a file needs: packed codes, scales as stored, and packed zero points if asymmetric."""
        return self.spec.nbytes(self.shape)

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
