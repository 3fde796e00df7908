"""How a saved network stores a tensor with zeros: STORAGES, by the name in its network.json.

A stored tensor is two: ``values``, and ``places`` (uint8) that tell where they belong.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from tersor.checkpoints.sparse.masks import from_bits, gathered, occupied, spread, to_bits
from tersor.numerics.packing import WIDTHS, pack, packed_bytes, unpack

# Bytes that another entry takes in the headers of the files.
ENTRY = 256


class Stored(NamedTuple):
    """A tensor without its zeros: ``values`` [k], packed to bytes if they have fewer than 8 bits, and ``places``."""

    values: Tensor
    places: Tensor

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(t.numel() * t.element_size() for t in self)


@runtime_checkable
class Storage(Protocol):
    """One way to leave zeros out. A tensor is given flat, and ``bits`` are those of its codes (8 and more: none are
    packed)."""

    def places(self, count: int) -> int | None:
        """The bytes of ``places`` for ``count`` values; None if it cannot store as many."""
        ...

    def values(self, count: int) -> int | None:
        """The number of values that are stored of ``count``; None if it depends on the tensor."""
        ...

    def store(self, flat: Shaped[Tensor, " n"]) -> tuple[Tensor, Tensor] | None:
        """The stored values, not packed, and the places; None if the tensor has no such pattern."""
        ...

    def read(
        self, values: Shaped[Tensor, " k"], places: UInt8[Tensor, " bytes"], count: int
    ) -> Shaped[Tensor, " n"]:
        """The tensor; raises ValueError if places and values do not match."""
        ...

    def kept(self, places: UInt8[Tensor, " bytes"], count: int) -> int:
        """How many values belong to these places."""
        ...


@dataclass(frozen=True)
class Bitmask:
    """A bit for each value, and the values that are not zero.

    >>> Bitmask().store(torch.tensor([0, 7, 0, 0, 5, 0, 0, 0, 0], dtype=torch.int8))
    (tensor([7, 5], dtype=torch.int8), tensor([18,  0], dtype=torch.uint8))
    """

    def places(self, count: int) -> int | None:
        """A bit for each value."""
        return packed_bytes(count, 1)

    def values(self, count: int) -> int | None:
        """Unknown."""
        return None

    def store(self, flat: Shaped[Tensor, " n"]) -> tuple[Tensor, Tensor] | None:
        """The values that are not zero, and the mask."""
        mask = occupied(flat)
        return gathered(flat, mask), to_bits(mask[None])[0]

    def read(
        self, values: Shaped[Tensor, " k"], places: UInt8[Tensor, " bytes"], count: int
    ) -> Shaped[Tensor, " n"]:
        """The tensor; raises ValueError for a mask of another length or another number of bits."""
        mask = from_bits(places[None], count)[0]
        if int(mask.sum()) != values.numel():
            raise ValueError(f"a mask with {int(mask.sum())} bits set for {values.numel()} values")
        return spread(values, mask)

    def kept(self, places: UInt8[Tensor, " bytes"], count: int) -> int:
        """The bits that are set."""
        return int(from_bits(places[None], count).sum())


@dataclass(frozen=True)
class Pattern:
    """``n`` of every ``m`` neighbours, and for each group which of the C(m, n) ways to choose them it uses.

    >>> Pattern(2, 4).store(torch.tensor([0, 3, 0, 4, 5, 0, 0, 0], dtype=torch.int8))
    (tensor([3, 4, 5, 0], dtype=torch.int8), tensor([4], dtype=torch.uint8))
    """

    n: int
    m: int

    @cached_property
    def ways(self) -> Tensor:
        """bool [C(m, n), m]: the values that each way keeps."""
        found = [[k in chosen for k in range(self.m)] for chosen in combinations(range(self.m), self.n)]
        return torch.tensor(found)

    @cached_property
    def way_of(self) -> Tensor:
        """uint8 [2^m]: the first way that keeps all values of a mask; their number if none does."""
        masks = torch.arange(2**self.m)[:, None] >> torch.arange(self.m) & 1
        covers = (self.ways[None] | (masks[:, None] == 0)).all(-1)
        return torch.where(covers.any(-1), covers.int().argmax(-1), len(self.ways)).to(torch.uint8)

    @property
    def width(self) -> int:
        """The bits of a way, as they can be packed."""
        return next(w for w in WIDTHS if 2**w >= len(self.ways))

    def places(self, count: int) -> int | None:
        """The ways of all groups, packed."""
        return None if count % self.m else packed_bytes(count // self.m, self.width)

    def values(self, count: int) -> int | None:
        """``n`` of each group."""
        return None if count % self.m else count // self.m * self.n

    def store(self, flat: Shaped[Tensor, " n"]) -> tuple[Tensor, Tensor] | None:
        """``n`` values of every group, zeros among them if it has fewer; None if a group has more."""
        if flat.numel() % self.m:
            return None
        groups = occupied(flat).reshape(-1, self.m).to(torch.uint8)
        ways = self.way_of[(groups << torch.arange(self.m, dtype=torch.uint8)).sum(-1)]
        if bool((ways == len(self.ways)).any()):
            return None
        return gathered(flat, self.ways[ways.int()].reshape(-1)), pack(ways, self.width)

    def read(
        self, values: Shaped[Tensor, " k"], places: UInt8[Tensor, " bytes"], count: int
    ) -> Shaped[Tensor, " n"]:
        """The tensor; raises ValueError for a way that does not exist, or another number of values."""
        if count % self.m or values.numel() != count // self.m * self.n:
            raise ValueError(f"{values.numel()} values for {count} in the pattern {self.n}:{self.m}")
        ways = unpack(places, self.width, count // self.m, signed=False)
        if bool((ways >= len(self.ways)).any()):
            raise ValueError(f"the way {int(ways.max())} of {len(self.ways)} in the pattern {self.n}:{self.m}")
        return spread(values, self.ways[ways.int()].reshape(-1))

    def kept(self, places: UInt8[Tensor, " bytes"], count: int) -> int:
        """``n`` of each group."""
        return count // self.m * self.n


STORAGES: Mapping[str, Storage] = {
    "bitmask": Bitmask(),
    "1:2": Pattern(1, 2),
    "2:4": Pattern(2, 4),
    "1:4": Pattern(1, 4),
    "3:4": Pattern(3, 4),
    "1:8": Pattern(1, 8),
}


def smallest(tensor: Shaped[Tensor, "..."], bits: int) -> tuple[str, Stored] | None:
    """The storage that takes the fewest bytes, and the tensor in it; None if none is smaller than all values.

    >>> name, stored = smallest(torch.tensor([0.0, 1.5, 0.0, -2.0]).repeat(1000), 32)
    >>> name, stored.nbytes
    ('1:2', 8250)
    """
    if tensor.is_complex() or not tensor.ndim:
        return None
    flat = tensor.detach().contiguous().reshape(-1)
    count, dense = flat.numel(), _bytes(flat, flat.numel(), bits) - ENTRY
    kept = int(occupied(flat).sum())
    expected = {}
    for name, storage in STORAGES.items():
        if (places := storage.places(count)) is not None:
            values = storage.values(count)
            expected[name] = places + _bytes(flat, kept if values is None else values, bits)
    for name in sorted((n for n in expected if expected[n] < dense), key=lambda n: expected[n]):
        if (found := STORAGES[name].store(flat)) is not None:
            values, places = found
            return name, Stored(pack(values, bits) if bits < 8 else values, places)
    return None


def read(
    name: str, stored: Stored, shape: tuple[int, ...], dtype: torch.dtype, bits: int
) -> Shaped[Tensor, "..."]:
    """The tensor that ``smallest`` stored as ``name``.

    Raises:
        ValueError, NumericsError: places and values do not match each other or the shape.
    """
    storage, count = STORAGES[name], math.prod(shape)
    values = stored.values
    if bits < 8:
        values = unpack(values, bits, storage.kept(stored.places, count), dtype.is_signed).to(dtype)
    return storage.read(values, stored.places, count).reshape(shape)


def check(name: str, values: int, places: int, count: int, bits: int) -> None:
    """Compare the lengths of the two stored tensors with the number of values, before they are read.

    So memory for zeros is at most eight values for each byte of a file.

    Raises:
        ValueError: they cannot be right.
    """
    storage = STORAGES[name]
    if places != storage.places(count):
        raise ValueError(f"{places} bytes of places for {count} values stored as {name}")
    exact = storage.values(count)
    most = count if exact is None else exact
    length = packed_bytes(most, bits) if bits < 8 else most
    if values > length or (exact is not None and values != length):
        raise ValueError(f"{values} stored values of {count} as {name}")


def _bytes(flat: Tensor, count: int, bits: int) -> int:
    return packed_bytes(count, bits) if bits < 8 else count * flat.element_size()
