"""GGUF block types: encode the rows of a matrix to bytes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from tersor.errors import CheckpointError
from tersor.numerics import QTensor

# Offsets from 15 levels that the search for a Q4_K block's scale tries.
_TRIALS = tuple(k / 10 for k in range(-10, 11))
# Rows encoded at once: the scale search keeps several copies of them.
_ROWS = 256


@dataclass(frozen=True)
class Kind:
    """One block type.

    Args:
        code: its number in the file format.
        size: values per block; a row is a whole number of blocks.
        nbytes: bytes per block.
        encode: rows [n, in] of float32 to bytes [n, in / size · nbytes].
        file_type: ``general.file_type`` of a file that uses mostly this type.
    """

    code: int
    size: int
    nbytes: int
    encode: Callable[[Tensor], Tensor]
    file_type: int


def encode(name: str, rows: Float[Tensor, "n m"], kind: str) -> UInt8[Tensor, " bytes"]:
    """Encode a matrix, rounded to ``kind``.

    Raises:
        CheckpointError: the matrix contains NaN, infinity or values beyond FP16; the message names it.

    >>> encode("head", torch.ones(2, 32), "q8_0").numel()
    68
    """
    if not rows.isfinite().all():
        raise CheckpointError(f"{name} holds NaN or infinity, which GGUF cannot store: check where it comes from")
    if kind != "f32" and rows.numel() and rows.abs().max() > torch.finfo(torch.float16).max:
        raise CheckpointError(
            f"{name} reaches {rows.abs().max():.4g}, beyond the range of FP16 that GGUF stores: rescale it"
        )
    return torch.cat([KINDS[kind].encode(part.float()).reshape(-1) for part in rows.split(_ROWS)])


def encode_codes(name: str, q: QTensor) -> tuple[str, UInt8[Tensor, " bytes"]]:
    """Encode a quantized matrix exactly; returns the block type, Q4_0 up to 4 bits or Q8_0 up to 8, and the bytes.

    Raises:
        CheckpointError: no block type stores it; it must be symmetric, with FP16 scales over groups of 32 inputs or a
            multiple that divides the row. The message names it.
    """
    if not has_block_type(q):
        raise CheckpointError(
            f"{name} is {q.spec} over {q.shape[1]} inputs; GGUF stores symmetric integers of up to 8 bits with scales "
            "over groups of 32 inputs or a multiple: quantize it so, or pass it in float (dequantize) to round it again"
        )
    d = q.scale.half()
    if not torch.equal(d.float(), q.scale):
        raise CheckpointError(
            f"{name}: its scales are not representable in float16: quantize it with scale_dtype='float16'"
        )
    d = d.repeat_interleave((q.spec.block or q.shape[1]) // 32, dim=1).unsqueeze(-1)
    codes = q.codes.unflatten(1, (-1, 32)).to(torch.int32)
    if q.spec.format.bits <= 4:
        return "q4_0", _q4_0(d, codes + 8).reshape(-1)
    return "q8_0", _q8_0(d, codes).reshape(-1)


def has_block_type(q: QTensor) -> bool:
    """Whether GGUF can store a matrix's codes and groups; the dtype of its scales is not checked."""
    size, format, per = q.spec.block or q.shape[1], q.spec.format, q.spec.granularity.kind
    integers = q.spec.symmetric and format.kind == "int" and format.signed and format.bits <= 8
    rows = len(q.shape) == 2 and per in ("group", "channel") and q.spec.granularity.axis == 0
    return integers and rows and size % 32 == 0 and q.shape[1] % size == 0


def _f32(rows: Float[Tensor, "n m"]) -> UInt8[Tensor, "n bytes"]:
    return rows.contiguous().view(torch.uint8)


def _f16(rows: Float[Tensor, "n m"]) -> UInt8[Tensor, "n bytes"]:
    return rows.half().contiguous().view(torch.uint8)


def _round_to_q4_0(rows: Float[Tensor, "n m"]) -> UInt8[Tensor, "n bytes"]:
    """The value of largest magnitude gets the code −8, which has no positive counterpart."""
    blocks = rows.unflatten(1, (-1, 32))
    d = (blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)) / -8).half()
    return _q4_0(d, (_over(blocks, d.float()).round() + 8).clamp(0, 15).to(torch.int32))


def _round_to_q8_0(rows: Float[Tensor, "n m"]) -> UInt8[Tensor, "n bytes"]:
    blocks = rows.unflatten(1, (-1, 32))
    d = (blocks.abs().amax(-1, keepdim=True) / 127).half()
    return _q8_0(d, _over(blocks, d.float()).round().clamp(-127, 127).to(torch.int32))


def _q4_0(d: Tensor, codes: Integer[Tensor, "n blocks 32"]) -> UInt8[Tensor, "n bytes"]:
    """``d·(q − 8)``: the scale in FP16, then bytes that each pack one code of the first half and one of the second."""
    nibbles = (codes[..., :16] | codes[..., 16:] << 4).to(torch.uint8)
    return torch.cat([d.view(torch.uint8), nibbles], dim=-1).flatten(1)


def _q8_0(d: Tensor, codes: Integer[Tensor, "n blocks 32"]) -> UInt8[Tensor, "n bytes"]:
    """``d·q``: the scale in FP16, then the codes."""
    return torch.cat([d.view(torch.uint8), codes.to(torch.int8).view(torch.uint8)], dim=-1).flatten(1)


def _q4_k(rows: Float[Tensor, "n m"]) -> UInt8[Tensor, "n bytes"]:
    """``d·s·q − dmin·m``: FP16 d and dmin per 256 values, 6-bit s and m per 32 values, 4-bit q."""
    blocks = rows.unflatten(1, (-1, 8, 32))
    step, floor = _fit_step_and_floor(blocks)
    d, dmin = ((t.amax(dim=2, keepdim=True) / 63).half() for t in (step, floor))
    s, m = (_over(t, over.float()).round().clamp(0, 63) for t, over in ((step, d), (floor, dmin)))
    codes = _over(blocks + dmin.float() * m, d.float() * s).round().clamp(0, 15).to(torch.int32)
    pairs = codes.unflatten(2, (4, 2))
    nibbles = (pairs[..., 0, :] | pairs[..., 1, :] << 4).flatten(2).to(torch.uint8)
    six = _six_bits(s.squeeze(-1).to(torch.int32), m.squeeze(-1).to(torch.int32))
    return torch.cat([d.flatten(2).view(torch.uint8), dmin.flatten(2).view(torch.uint8), six, nibbles], -1).flatten(1)


def _six_bits(s: Integer[Tensor, "n blocks 8"], m: Integer[Tensor, "n blocks 8"]) -> UInt8[Tensor, "n blocks 12"]:
    """Pack scales and minima: bytes 0–7 hold the first four of each in six bits, and two high bits of the last four."""
    first = s[..., :4] | s[..., 4:] >> 4 << 6
    second = m[..., :4] | m[..., 4:] >> 4 << 6
    third = s[..., 4:] & 15 | (m[..., 4:] & 15) << 4
    return torch.cat([first, second, third], dim=-1).to(torch.uint8)


def _fit_step_and_floor(blocks: Float[Tensor, "... 32"]) -> tuple[Tensor, Tensor]:
    """Step and floor ≥ 0, [..., 1], that minimize the squared error of ``step·q − floor``.

    Codes are computed with several steps around the one that spans the values; for each set of codes step and floor
    are fitted by least squares, and the best pair is returned.
    """
    low, high = blocks.amin(-1, keepdim=True).clamp(max=0.0), blocks.amax(-1, keepdim=True)
    step, floor = (high - low).clamp(min=0.0) / 15, -low
    best = _error(blocks, step, floor)
    for trial in _TRIALS:
        q = _over((blocks - low) * (15 + trial), high - low).round().clamp(0, 15)
        mean_q, mean_x = q.mean(-1, keepdim=True), blocks.mean(-1, keepdim=True)
        slope = _over(((q - mean_q) * blocks).sum(-1, keepdim=True), (q - mean_q).square().sum(-1, keepdim=True))
        below = slope * mean_q - mean_x
        # A line above zero at code 0 would need floor < 0; fit one through the origin instead.
        through = _over((q * blocks).sum(-1, keepdim=True), q.square().sum(-1, keepdim=True))
        slope, below = torch.where(below < 0, through, slope).clamp(min=0.0), below.clamp(min=0.0)
        error = _error(blocks, slope, below)
        better = error < best
        step, floor, best = (torch.where(better, a, b) for a, b in ((slope, step), (below, floor), (error, best)))
    return step, floor


def _error(blocks: Tensor, step: Tensor, floor: Tensor) -> Tensor:
    q = _over(blocks + floor, step).round().clamp(0, 15)
    return (step * q - floor - blocks).square().sum(-1, keepdim=True)


def _over(x: Tensor, divisor: Tensor) -> Tensor:
    """``x / divisor``, or 0 where the divisor is 0."""
    return torch.where(divisor == 0, 0.0, x / torch.where(divisor == 0, 1.0, divisor))


KINDS: dict[str, Kind] = {
    "f32": Kind(0, 1, 4, _f32, 0),
    "f16": Kind(1, 1, 2, _f16, 1),
    "q4_0": Kind(2, 32, 18, _round_to_q4_0, 2),
    "q8_0": Kind(8, 32, 34, _round_to_q8_0, 7),
    "q4_k": Kind(12, 256, 144, _q4_k, 14),
}
