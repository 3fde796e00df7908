"""The number formats."""

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class NumberFormat:
    """One number format.

    Args:
        name: the name in recipes and reports.
        bits: bits of a code in a packed file.
        kind: ``int``, codes are consecutive integers; ``levels``, codes are a few symmetric integer levels; ``float``,
            codes are floating-point numbers.
        low: the smallest code (``float``: the lowest finite value, at which it saturates).
        high: the largest code (``float``: the highest finite value, at which it saturates).
        dtype: the PyTorch dtype of unpacked codes.
        exponent: exponent bits of a float format; otherwise 0.
        mantissa: mantissa bits of a float format; otherwise 0.

    Binary is the only format that cannot represent zero.

    FP8 is from Micikevicius et al., arXiv 2209.05433; e4m3 is its variant without infinities.

    >>> FORMATS["int8"].low, FORMATS["int8"].high, FORMATS["int8"].signed
    (-128, 127, True)
    >>> FORMATS["fp8_e4m3"].high
    448.0
    """

    name: str
    bits: int
    kind: Literal["int", "float", "levels"]
    low: int | float
    high: int | float
    dtype: torch.dtype
    exponent: int = 0
    mantissa: int = 0

    @property
    def signed(self) -> bool:
        """Whether there are negative codes."""
        return self.low < 0

    @property
    def smallest_exponent(self) -> int:
        """The exponent of the smallest normal number of a float format.

        >>> FORMATS["fp16"].smallest_exponent
        -14
        """
        return 2 - 2 ** (self.exponent - 1)

    def __str__(self) -> str:
        return self.name


def _integer(name: str, bits: int, dtype: torch.dtype) -> NumberFormat:
    signed = dtype.is_signed
    low = -(2 ** (bits - 1)) if signed else 0
    return NumberFormat(name, bits, "int", low, low + 2**bits - 1, dtype)


def _float(name: str, dtype: torch.dtype, exponent: int, mantissa: int) -> NumberFormat:
    limit = torch.finfo(dtype).max
    return NumberFormat(name, 1 + exponent + mantissa, "float", -limit, limit, dtype, exponent, mantissa)


FORMATS: dict[str, NumberFormat] = {
    format.name: format
    for format in (
        _integer("int2", 2, torch.int8),
        _integer("int3", 3, torch.int8),
        _integer("int4", 4, torch.int8),
        _integer("int8", 8, torch.int8),
        _integer("int16", 16, torch.int16),
        _integer("uint1", 1, torch.uint8),
        _integer("uint2", 2, torch.uint8),
        _integer("uint3", 3, torch.uint8),
        _integer("uint4", 4, torch.uint8),
        _integer("uint8", 8, torch.uint8),
        NumberFormat("binary", 1, "levels", -1, 1, torch.int8),
        NumberFormat("ternary", 2, "levels", -1, 1, torch.int8),
        _float("fp8_e4m3", torch.float8_e4m3fn, 4, 3),
        _float("fp8_e5m2", torch.float8_e5m2, 5, 2),
        _float("fp16", torch.float16, 5, 10),
        _float("bf16", torch.bfloat16, 8, 7),
        _float("fp32", torch.float32, 8, 23),
    )
}
"""All formats by name."""
