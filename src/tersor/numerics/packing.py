"""Codes of 1, 2, 3, 4, 8 and 16 bits in bytes, without a gap; the lowest bits come first."""

from math import gcd

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from tersor.errors import NumericsError

WIDTHS = (1, 2, 3, 4, 8, 16)


def pack(codes: Integer[Tensor, "..."], bits: int) -> UInt8[Tensor, " bytes"]:
    """Codes as a dense stream of ``ceil(count·bits / 8)`` bytes, little-endian in bits and bytes.

    Code ``i`` takes the bits ``i·bits … (i+1)·bits − 1``; negative codes are in two's complement. A single
    bit holds 0 and 1, or −1 (as 0) and 1: two's complement has no +1 there.

    Raises NumericsError if a code does not fit, or for another width.

    >>> pack(torch.tensor([1, -1, -2, 0, 1]), 2).tolist()
    [45, 1]
    """
    flat = codes.reshape(-1)
    _check_width(bits)
    if flat.numel() == 0:
        return torch.empty(0, dtype=torch.uint8, device=codes.device)
    least, most = (int(one) for one in flat.aminmax())
    if least < -(2 ** (bits - 1)) or most >= 2**bits or (least < 0 and most >= max(2 ** (bits - 1), 2)):
        raise NumericsError(f"codes from {least} to {most} do not fit in {bits} bits: clamp or pack wider")
    if bits == 16:
        return flat.to(torch.int16).contiguous().view(torch.uint8)
    if bits == 8:
        return flat.to(torch.uint8).contiguous()
    per_word, bytes_per_word = _word(bits)
    words = flat.new_zeros(-(-flat.numel() // per_word), dtype=torch.int32)
    for place in range(per_word):
        one = flat[place::per_word].to(torch.int32)
        one = (one > 0).int() if bits == 1 else one & (2**bits - 1)
        words[: one.numel()] |= one << (bits * place)
    shifts = torch.arange(0, 8 * bytes_per_word, 8, device=codes.device, dtype=torch.int32)
    stream = ((words[:, None] >> shifts) & 255).to(torch.uint8).reshape(-1)
    return stream[: packed_bytes(flat.numel(), bits)].clone()


def unpack(packed: UInt8[Tensor, " bytes"], bits: int, count: int, signed: bool) -> Integer[Tensor, " count"]:
    """The first ``count`` codes of a stream that ``pack`` wrote, as int8, uint8 or int16.

    Raises NumericsError if the stream has another length, or for another width.

    >>> unpack(torch.tensor([45, 1], dtype=torch.uint8), 2, 5, signed=True).tolist()
    [1, -1, -2, 0, 1]
    """
    _check_width(bits)
    if packed.numel() != packed_bytes(count, bits):
        raise NumericsError(
            f"{count} codes of {bits} bits take {packed_bytes(count, bits)} bytes, not {packed.numel()}: "
            "the stream is cut, or of another format"
        )
    if bits >= 8:
        wide = {8: (torch.uint8, torch.int8), 16: (torch.uint16, torch.int16)}
        return packed.contiguous().view(wide[bits][signed]).clone()
    per_word, bytes_per_word = _word(bits)
    padded = packed.new_zeros(-(-packed.numel() // bytes_per_word) * bytes_per_word)
    padded[: packed.numel()] = packed
    words = torch.zeros(padded.numel() // bytes_per_word, dtype=torch.int32, device=packed.device)
    for place in range(bytes_per_word):
        words |= padded[place::bytes_per_word].to(torch.int32) << (8 * place)
    shifts = torch.arange(0, bits * per_word, bits, device=packed.device, dtype=torch.int32)
    codes = ((words[:, None] >> shifts) & (2**bits - 1)).to(torch.uint8).reshape(-1)[:count]
    if not signed:
        return codes.clone()
    codes = codes.to(torch.int8)
    sign = 2 ** (bits - 1)
    return 2 * codes - 1 if bits == 1 else (codes ^ sign) - sign


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes ``count`` codes take.

    >>> packed_bytes(3, 3)
    2
    """
    return -(-count * bits // 8)


def _word(bits: int) -> tuple[int, int]:
    """The shortest run of whole bytes that holds whole codes: (codes, bytes)."""
    return 8 // gcd(bits, 8), bits // gcd(bits, 8)


def _check_width(bits: int) -> None:
    if bits not in WIDTHS:
        raise NumericsError(f"codes of {bits} bits cannot be packed: use one of {WIDTHS}")
