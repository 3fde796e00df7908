"""Dense packing of codes of 1, 2, 3, 4, 8 and 16 bits into bytes, lowest bits first."""

from math import gcd

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor

from tersor.errors import NumericsError

WIDTHS = (1, 2, 3, 4, 8, 16)


def pack(codes: Integer[Tensor, "..."], bits: int) -> UInt8[Tensor, " bytes"]:
    """Pack codes to a dense stream of ``ceil(count·bits / 8)`` bytes, little-endian in bits and bytes.

    Code ``i`` has the bits ``i·bits … (i+1)·bits − 1``; negative codes are in two's complement. A single bit stores 0
    and 1, or −1 (as 0) and 1, since two's complement has no +1 there.

    Raises NumericsError if a code does not fit, or the width is unsupported.

    >>> pack(torch.tensor([1, -1, -2, 0, 1]), 2).tolist()
    [45, 1]
    """
    flat = codes.reshape(-1)
    _check_width(bits)
    if flat.numel() == 0:
        return torch.empty(0, dtype=torch.uint8, device=codes.device)
    smallest, largest = (int(end) for end in flat.aminmax())
    if smallest < -(2 ** (bits - 1)) or largest >= 2**bits or (smallest < 0 and largest >= max(2 ** (bits - 1), 2)):
        raise NumericsError(
            f"codes from {smallest} to {largest} do not fit in {bits} bits: clamp them, or use more bits"
        )
    if bits == 16:
        return flat.to(torch.int16).contiguous().view(torch.uint8)
    if bits == 8:
        return flat.to(torch.uint8).contiguous()
    per_word, bytes_per_word = _word(bits)
    words = flat.new_zeros(-(-flat.numel() // per_word), dtype=torch.int32)
    for position in range(per_word):
        values = flat[position::per_word].to(torch.int32)
        values = (values > 0).int() if bits == 1 else values & (2**bits - 1)
        words[: values.numel()] |= values << (bits * position)
    shifts = torch.arange(0, 8 * bytes_per_word, 8, device=codes.device, dtype=torch.int32)
    stream = ((words[:, None] >> shifts) & 255).to(torch.uint8).reshape(-1)
    return stream[: packed_bytes(flat.numel(), bits)].clone()


def unpack(packed: UInt8[Tensor, " bytes"], bits: int, count: int, signed: bool) -> Integer[Tensor, " count"]:
    """Unpack the first ``count`` codes of a stream that ``pack`` wrote, as int8, uint8 or int16.

    Raises NumericsError if the stream has another length, or the width is unsupported.

    >>> unpack(torch.tensor([45, 1], dtype=torch.uint8), 2, 5, signed=True).tolist()
    [1, -1, -2, 0, 1]
    """
    _check_width(bits)
    if packed.numel() != packed_bytes(count, bits):
        raise NumericsError(
            f"{count} codes of {bits} bits take {packed_bytes(count, bits)} bytes, not {packed.numel()}: "
            "the stream is truncated, or has another format"
        )
    if bits >= 8:
        dtypes = {8: (torch.uint8, torch.int8), 16: (torch.uint16, torch.int16)}
        return packed.contiguous().view(dtypes[bits][signed]).clone()
    per_word, bytes_per_word = _word(bits)
    padded = packed.new_zeros(-(-packed.numel() // bytes_per_word) * bytes_per_word)
    padded[: packed.numel()] = packed
    words = torch.zeros(padded.numel() // bytes_per_word, dtype=torch.int32, device=packed.device)
    # Functions, not the operators << and >>, which torch.onnx.export does not support.
    for position in range(bytes_per_word):
        words |= torch.bitwise_left_shift(padded[position::bytes_per_word].to(torch.int32), 8 * position)
    shifts = torch.arange(0, bits * per_word, bits, device=packed.device, dtype=torch.int32)
    codes = (torch.bitwise_right_shift(words[:, None], shifts) & (2**bits - 1)).to(torch.uint8).reshape(-1)[:count]
    if not signed:
        return codes.clone()
    codes = codes.to(torch.int8)
    sign = 2 ** (bits - 1)
    return 2 * codes - 1 if bits == 1 else (codes ^ sign) - sign


def packed_bytes(count: int, bits: int) -> int:
    """The number of bytes that ``count`` codes take.

    >>> packed_bytes(3, 3)
    2
    """
    return -(-count * bits // 8)


def _word(bits: int) -> tuple[int, int]:
    """The shortest run of whole bytes that stores whole codes, as (codes, bytes)."""
    return 8 // gcd(bits, 8), bits // gcd(bits, 8)


def _check_width(bits: int) -> None:
    if bits not in WIDTHS:
        raise NumericsError(f"codes of {bits} bits cannot be packed: use one of {WIDTHS}")
