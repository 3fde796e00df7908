"""How a tensor is quantized: format, granularity of the scales, symmetry and rounding."""

import re
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from math import prod
from typing import Any, Literal, get_args

import torch

from tersor.errors import RecipeError
from tersor.numerics.formats import FORMATS, NumberFormat
from tersor.numerics.packing import packed_bytes

Rounding = Literal["nearest", "stochastic"]
ScaleDtype = Literal["float32", "float16", "bfloat16"]
KINDS = ("tensor", "channel", "group", "filters", "token")


@dataclass(frozen=True)
class Granularity:
    """Which elements share a scale.

    | text | one scale for |
    |---|---|
    | ``tensor`` | the whole tensor |
    | ``channel``, ``channel:1`` | each index of dimension 0, 1 … |
    | ``group:32`` | each row (dimension 0) and 32 consecutive inputs (dimension 1) |
    | ``filters:16`` | 16 consecutive filters (dimension 0), as in a grouped convolution |
    | ``token`` | each row: all dimensions but the last |

    The last group may be partial.

    >>> Granularity.parse("group:32")
    Granularity(kind='group', axis=0, size=32)
    >>> str(Granularity.channel(1))
    'channel:1'
    """

    kind: str
    axis: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RecipeError(f"granularity {self.kind!r} is unknown: {', '.join(KINDS)}")
        blocked = self.kind in ("group", "filters")
        sized = 1 <= self.size < 1 << 31 if blocked else self.size == 0
        if not sized or (self.axis and self.kind != "channel"):
            raise RecipeError(
                f"granularity {self.kind!r} with axis {self.axis} and size {self.size} does not exist: "
                "group and filters need a size from 1 to 2^31 - 1, and only channel has an axis"
            )

    @classmethod
    def tensor(cls) -> "Granularity":
        """One scale for the whole tensor."""
        return cls("tensor")

    @classmethod
    def channel(cls, axis: int = 0) -> "Granularity":
        """One scale for each index of dimension ``axis``."""
        return cls("channel", axis=axis)

    @classmethod
    def group(cls, size: int) -> "Granularity":
        """One scale for each row and each ``size`` inputs (dimension 1)."""
        return cls("group", size=size)

    @classmethod
    def filters(cls, size: int) -> "Granularity":
        """One scale for each ``size`` filters (dimension 0)."""
        return cls("filters", size=size)

    @classmethod
    def token(cls) -> "Granularity":
        """One scale for each row: all dimensions but the last."""
        return cls("token")

    @classmethod
    def parse(cls, text: str) -> "Granularity":
        """Parse the text form of a granularity; raises RecipeError for any other text."""
        match = re.fullmatch(r"(tensor|token)|(channel)(?::(-?\d{1,4}))?|(group|filters):(\d{1,30})", text.strip())
        if match is None:
            raise RecipeError(
                f"granularity {text!r} is unknown: "
                "write tensor, channel, channel:1, group:32, filters:16 or token"
            )
        whole, channel, axis, blocked, size = match.groups()
        return cls(whole or channel or blocked, axis=int(axis or 0), size=int(size or 0))

    def scale_shape(self, shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
        """The shape of the scale for a tensor of ``shape``: the same number of dimensions, each 1 (shared), n (one per
        index) or n divided by the group's size, rounded up.

        Raises RecipeError if the tensor does not have the dimension.

        >>> Granularity.channel().scale_shape((64, 3, 7, 7))
        (64, 1, 1, 1)
        >>> Granularity.group(32).scale_shape((10, 100))
        (10, 4)
        """
        needed = {"tensor": 0, "token": 1, "group": 2, "filters": 1, "channel": self.axis + 1}[self.kind]
        if self.kind == "channel" and self.axis < 0:
            needed = -self.axis
        if len(shape) < needed:
            raise RecipeError(
                f"granularity {self} needs {needed} dimensions, but a tensor has shape {tuple(shape)}: use tensor"
            )
        counts = [1] * len(shape)
        if self.kind == "token":
            counts[:-1] = shape[:-1]
        elif self.kind == "channel":
            counts[self.axis] = shape[self.axis]
        elif self.kind == "filters":
            counts[0] = -(-shape[0] // self.size)
        elif self.kind == "group":
            counts[0], counts[1] = shape[0], -(-shape[1] // self.size)
        return tuple(counts)

    def __str__(self) -> str:
        if self.size:
            return f"{self.kind}:{self.size}"
        return f"{self.kind}:{self.axis}" if self.axis else self.kind


@dataclass(frozen=True, init=False)
class QuantSpec:
    """Format × granularity × symmetry × rounding × scale dtype. ``x ≈ (q − zero_point)·scale``.

    Args:
        format: a NumberFormat or its name.
        granularity: a Granularity or its text.
        symmetric: the zero point is 0. Signed codes are then limited to ±(2^(b−1) − 1), unsigned ones represent no
            negative values. Only integer formats can be asymmetric.
        rounding: to nearest, ties to even, or stochastic (unbiased, needs a generator).
        scale_dtype: the stored dtype of the scale, which is rounded to it before use.

    Raises:
        RecipeError: a name or combination is invalid.

    >>> spec = QuantSpec("int8", "channel")
    >>> str(spec), spec.low, spec.high
    ('int8 per channel symmetric', -127, 127)
    >>> QuantSpec("uint8", symmetric=False).high
    255
    """

    format: NumberFormat
    granularity: Granularity
    symmetric: bool
    rounding: Rounding
    scale_dtype: ScaleDtype

    # Explicit, since it also accepts the names and texts of recipe files.
    def __init__(
        self,
        format: NumberFormat | str,
        granularity: Granularity | str = "tensor",
        symmetric: bool = True,
        rounding: str = "nearest",
        scale_dtype: str = "float32",
    ) -> None:
        format = _named_format(format) if isinstance(format, str) else format
        granularity = Granularity.parse(granularity) if isinstance(granularity, str) else granularity
        if format.kind != "int" and not symmetric:
            raise RecipeError(f"{format} has no zero point: use symmetric=True or an integer format")
        if rounding not in get_args(Rounding):
            raise RecipeError(f"rounding {rounding!r} is unknown: {' or '.join(get_args(Rounding))}")
        if scale_dtype not in get_args(ScaleDtype):
            raise RecipeError(f"scale_dtype {scale_dtype!r} is unknown: {', '.join(get_args(ScaleDtype))}")
        values = (format, granularity, symmetric, rounding, scale_dtype)
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    # Typed Any, since only float formats have float codes.
    def nbytes(self, shape: tuple[int, ...] | torch.Size) -> int:
        """Bytes of a tensor in a file: packed codes, scales as stored, and packed zero points if asymmetric.

        >>> QuantSpec("int4", "group:32", scale_dtype="float16").nbytes((2, 64))
        72
        """
        scales = prod(self.granularity.scale_shape(shape))
        zeros = 0 if self.symmetric else packed_bytes(scales, self.format.bits)
        return packed_bytes(prod(shape), self.format.bits) + scales * getattr(torch, self.scale_dtype).itemsize + zeros

    @property
    def low(self) -> Any:
        """The smallest code in use: an int, or a float format's finite limit."""
        return -self.format.high if self.symmetric and self.format.signed else self.format.low

    @property
    def high(self) -> Any:
        """The largest code in use: an int, or a float format's finite limit."""
        return self.format.high

    @property
    def block(self) -> int:
        """The number of neighbours that share a scale in a blocked dimension, or 0."""
        return self.granularity.size

    def with_(self, **changes) -> "QuantSpec":
        """A copy with changed fields.

        >>> str(QuantSpec("int8").with_(format="int4", granularity="group:32"))
        'int4 per group:32 symmetric'
        """
        return replace(self, **changes)

    def as_dict(self) -> dict[str, str | bool]:
        """As plain values, for files; ``QuantSpec(**spec.as_dict()) == spec``."""
        return {**asdict(self), "format": self.format.name, "granularity": str(self.granularity)}

    def __str__(self) -> str:
        parts = [self.format.name, f"per {self.granularity}"]
        if self.format.kind == "int":
            parts.append("symmetric" if self.symmetric else "asymmetric")
        if self.rounding != "nearest":
            parts.append(self.rounding)
        if self.scale_dtype != "float32":
            parts.append(f"{self.scale_dtype} scales")
        return " ".join(parts)


def _named_format(name: str) -> NumberFormat:
    if name not in FORMATS:
        nearest = get_close_matches(name, FORMATS, n=2)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(FORMATS)}"
        raise RecipeError(f"number format {name!r} is unknown: {hint}")
    return FORMATS[name]
