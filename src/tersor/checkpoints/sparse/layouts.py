"""The layouts of compressed-tensors for float weights with zeros: SPARSE_LAYOUTS, by the name in config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.checkpoints.bit_packing import layer_name
from tersor.checkpoints.sparse.masks import from_bits, gathered, spread, to_bits
from tersor.errors import CheckpointError

# The last release that reads these layouts, and whose files these are.
VERSION = "0.14.0"
KEY = "sparsity_config"


@runtime_checkable
class SparseLayout(Protocol):
    """How a folder stores float weights [out, in] without their zeros, under names such as ``LAYER.compressed``.

    As in the package itself, −0.0 is a zero and comes back as 0.0.
    """

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The tensors of a weight, in place of ``weight``."""
        ...

    @property
    def structure(self) -> str:
        """The ``sparsity_structure`` in config.json."""
        ...

    def encode(self, name: str, weight: Float[Tensor, "out in"]) -> dict[str, Tensor] | None:
        """The tensors that replace ``name``; None if the weight has no such zeros, or takes no fewer bytes so."""
        ...

    def decode(self, name: str, tensors: Mapping[str, Tensor]) -> Float[Tensor, "out in"]:
        """The weight ``name``; raises CheckpointError if its tensors do not match."""
        ...


@dataclass(frozen=True)
class SparseBitmask:
    """``compressed`` [k], the values that are not zero, row by row; ``bitmask`` uint8 [out, ⌈in/8⌉], lowest bit first;
    ``row_offsets`` int64 [out], where each row starts in ``compressed``; ``shape`` int64 [2].

    https://github.com/vllm-project/compressed-tensors, up to 0.14.

    >>> tensors = SparseBitmask().encode("up.weight", torch.eye(64))
    >>> {name: tuple(t.shape) for name, t in tensors.items()}
    {'up.compressed': (64,), 'up.bitmask': (64, 8), 'up.row_offsets': (64,), 'up.shape': (2,)}
    """

    suffixes: tuple[str, ...] = ("compressed", "bitmask", "row_offsets", "shape")
    structure: str = "unstructured"

    def encode(self, name: str, weight: Float[Tensor, "out in"]) -> dict[str, Tensor] | None:
        """The four tensors."""
        mask = weight != 0
        return _smaller(name, weight, {
            "compressed": gathered(weight, mask),
            "bitmask": to_bits(mask),
            "row_offsets": _offsets(mask),
            "shape": torch.tensor(weight.shape),
        })  # fmt: skip

    def decode(self, name: str, tensors: Mapping[str, Tensor]) -> Float[Tensor, "out in"]:
        """The weight."""
        values, mask, offsets = (_part(name, tensors, suffix) for suffix in self.suffixes[:3])
        mask = _mask(name, mask, _part(name, tensors, "shape"))
        if values.ndim != 1 or values.numel() != int(mask.sum()):
            raise CheckpointError(f"{name}: {list(values.shape)} values for {int(mask.sum())} bits of its bitmask")
        if offsets.dtype != torch.int64 or not torch.equal(offsets.reshape(-1), _offsets(mask)):
            raise CheckpointError(f"{name}: its row_offsets are not those of its bitmask")
        return spread(values, mask)


@dataclass(frozen=True)
class Sparse24Bitmask:
    """``compressed`` [out, in/2], two values of every four neighbours; ``bitmask`` uint8 [out, ⌈in/8⌉], lowest bit
    first, with two bits set of every four; ``shape`` int64 [2, 1].

    >>> tensors = Sparse24Bitmask().encode("up.weight", torch.eye(64))
    >>> {name: tuple(t.shape) for name, t in tensors.items()}
    {'up.compressed': (64, 32), 'up.bitmask': (64, 8), 'up.shape': (2, 1)}
    """

    suffixes: tuple[str, ...] = ("compressed", "bitmask", "shape")
    structure: str = "2:4"

    def encode(self, name: str, weight: Float[Tensor, "out in"]) -> dict[str, Tensor] | None:
        """The three tensors."""
        rows, columns = weight.shape
        if columns % 4:
            return None
        groups = (weight != 0).reshape(-1, 4)
        if bool((groups.sum(1) > 2).any()):
            return None
        # Two of each group, the first zeros filling up where it has fewer other values.
        order = (~groups).int().argsort(dim=1, stable=True)[:, :2]
        mask = torch.zeros_like(groups).scatter_(1, order, True).reshape(rows, columns)
        return _smaller(name, weight, {
            "compressed": gathered(weight, mask).reshape(rows, columns // 2),
            "bitmask": to_bits(mask),
            "shape": torch.tensor(weight.shape).reshape(2, 1),
        })  # fmt: skip

    def decode(self, name: str, tensors: Mapping[str, Tensor]) -> Float[Tensor, "out in"]:
        """The weight."""
        values, mask = (_part(name, tensors, suffix) for suffix in self.suffixes[:2])
        mask = _mask(name, mask, _part(name, tensors, "shape"))
        rows, columns = mask.shape
        if columns % 4 or bool((mask.reshape(rows, -1, 4).sum(-1) != 2).any()):
            raise CheckpointError(f"{name}: its bitmask does not keep two of every four values")
        if values.shape != (rows, columns // 2):
            raise CheckpointError(f"{name}: {list(values.shape)} values for {rows}·{columns} in the pattern 2:4")
        return spread(values, mask)


SPARSE_LAYOUTS: dict[str, SparseLayout] = {
    "sparse-bitmask": SparseBitmask(),
    "sparse-24-bitmask": Sparse24Bitmask(),
}


def sparsity_of(config: Any) -> str | None:
    """The sparse layout of the content of a config.json, written by any tool; None for any other.

    >>> sparsity_of({"quantization_config": {"sparsity_config": {"format": "sparse-bitmask"}}})
    'sparse-bitmask'
    """
    for key in ("quantization_config", KEY):
        config = config.get(key) if isinstance(config, Mapping) else None
    found = config.get("format") if isinstance(config, Mapping) else None
    return found if isinstance(found, str) and found in SPARSE_LAYOUTS else None


def sparsity_config(layout: str, share: float, ignore: list[str]) -> dict[str, Any]:
    """The ``quantization_config`` for linear layers of which a ``share`` of the weights are zeros, all but ``ignore``.

    It has no other entries, since readers would take them for a quantization.
    """
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        KEY: {
            "format": layout,
            "sparsity_structure": SPARSE_LAYOUTS[layout].structure,
            "global_sparsity": share,
            "targets": ["Linear"],
            "ignore": ignore,
        },
    }


def _smaller(name: str, weight: Tensor, parts: dict[str, Tensor]) -> dict[str, Tensor] | None:
    if sum(t.numel() * t.element_size() for t in parts.values()) >= weight.numel() * weight.element_size():
        return None
    return {f"{layer_name(name)}.{suffix}": t for suffix, t in parts.items()}


def _offsets(mask: Tensor) -> Tensor:
    counts = mask.sum(-1)
    return counts.cumsum(0) - counts


def _part(name: str, tensors: Mapping[str, Tensor], suffix: str) -> Tensor:
    wanted = f"{layer_name(name)}.{suffix}"
    if wanted not in tensors:
        raise CheckpointError(f"{wanted}, part of the sparse {name}, is missing: download the folder again")
    return tensors[wanted]


def _mask(name: str, bits: Tensor, shape: Tensor) -> Tensor:
    """The mask of a weight, whose size is compared with the stored bits before it is made."""
    sizes = sizes_of(name, shape)
    if bits.dtype != torch.uint8 or list(bits.shape) != [sizes[0], -(-sizes[1] // 8)]:
        raise CheckpointError(
            f"{name}: its bitmask is {bits.dtype} {list(bits.shape)}, not that of {sizes[0]}·{sizes[1]} values: the "
            "file is damaged, download it again"
        )
    try:
        return from_bits(bits, sizes[1])
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}: the file is damaged, download it again") from error


def sizes_of(name: str, shape: Tensor) -> tuple[int, int]:
    """Rows and columns from the stored ``shape``.

    Raises:
        CheckpointError: it holds no two sizes.
    """
    sizes = shape.reshape(-1).tolist() if shape.numel() == 2 and shape.dtype in (torch.int64, torch.int32) else []
    if len(sizes) != 2 or min(sizes) < 0:
        raise CheckpointError(f"{name}: its shape holds no two sizes: the file is damaged, download it again")
    return sizes[0], sizes[1]
