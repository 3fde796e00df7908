"""Bits that tell zeros from other values, and values gathered by them, bit for bit."""

import torch
from jaxtyping import Bool, Shaped, UInt8
from torch import Tensor

from tersor.numerics.packing import pack, packed_bytes, unpack

# Integers of the same size, since not every dtype can be indexed.
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def words(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The same bits as integers; raises KeyError for complex numbers of 128 bits."""
    return tensor.contiguous().view(_WORDS[tensor.element_size()])


def occupied(tensor: Shaped[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Where a bit is set; so −0.0, which equals 0, is stored and comes back with its sign.

    >>> occupied(torch.tensor([0.0, -0.0, 1e-45])).tolist()
    [False, True, True]
    """
    return words(tensor) != 0


def gathered(tensor: Shaped[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Shaped[Tensor, " values"]:
    """The values where the mask is set, in row-major order."""
    return words(tensor)[mask].view(tensor.dtype)


def spread(values: Shaped[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The inverse of ``gathered``: as many values as the mask has set bits, zeros elsewhere."""
    full = torch.zeros(mask.shape, dtype=_WORDS[values.element_size()])
    full[mask] = words(values).reshape(-1)
    return full.view(values.dtype)


def to_bits(mask: Bool[Tensor, "rows n"]) -> UInt8[Tensor, "rows bytes"]:
    """Each row as bytes, lowest bit first, padded with zeros.

    >>> to_bits(torch.tensor([[True, False, False, True, False, False, False, False, True]])).tolist()
    [[9, 1]]
    """
    padded = torch.nn.functional.pad(mask, (0, -mask.shape[1] % 8))
    return pack(padded.to(torch.uint8), 1).reshape(mask.shape[0], padded.shape[1] // 8)


def from_bits(bits: UInt8[Tensor, "rows bytes"], count: int) -> Bool[Tensor, "rows n"]:
    """The inverse of ``to_bits`` for rows of ``count`` bits.

    Raises:
        ValueError: the rows have another length, or a bit behind the last one is set.
    """
    if bits.shape[1] != packed_bytes(count, 1):
        raise ValueError(f"a mask of {bits.shape[1]} bytes in a row for {count} values")
    full = unpack(bits.contiguous().reshape(-1), 1, bits.numel() * 8, signed=False)
    full = full.reshape(bits.shape[0], bits.shape[1] * 8).bool()
    if bool(full[:, count:].any()):
        raise ValueError(f"a mask with bits behind the last of {count} values")
    return full[:, :count]
