"""Windows of tokens in batches, and the inputs of a block for all windows, stored on disk."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.files import whole_file

# Tokens per batch.
TOKENS = 4096


@dataclass(frozen=True)
class Activations:
    """The inputs of each block, ``[windows, length, width]``, one file per block.

    Args:
        folder: the folder of the files.
        name: the name in the file names, since several sequences may go through the same blocks.
        batch: windows per read.
    """

    folder: Path
    name: str
    windows: int
    length: int
    width: int
    dtype: torch.dtype
    batch: int

    def at(self, number: int) -> Path:
        """The path of a block's inputs."""
        return self.folder / f"{self.name}-{number}.bin"

    def ready(self, number: int) -> bool:
        """Whether the inputs of a block are stored completely."""
        path = self.at(number)
        return path.is_file() and path.stat().st_size == self.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of one file; two exist while a block is computed."""
        return self.windows * self.length * self.width * self.dtype.itemsize

    def read(self, number: int) -> Iterator[Tensor]:
        """Yield the inputs of a block in batches, ``[batch, length, width]``."""
        with self.at(number).open("rb") as file:
            for start in range(0, self.windows, self.batch):
                shape = (min(self.batch, self.windows - start), self.length, self.width)
                raw = bytearray(torch.Size(shape).numel() * self.dtype.itemsize)
                file.readinto(raw)
                yield torch.frombuffer(raw, dtype=self.dtype).reshape(shape)

    def write(self, number: int, batches: Iterable[Tensor]) -> None:
        """Write the inputs of a block atomically."""
        with whole_file(self.at(number)) as part, part.open("wb") as file:
            for x in batches:
                x = x.detach().to(self.dtype).contiguous()
                file.write(x.view(torch.uint8).numpy().data)

    def drop(self, number: int) -> None:
        """Delete the inputs of a block, if stored."""
        self.at(number).unlink(missing_ok=True)


class TokenBatches:
    """Windows of tokens with their block inputs and arguments.

    Args:
        name: the name in the files of activations.
        ids: int64 [windows, length].
        token_mask: bool [windows, length], True for real positions; None if all are real.
    """

    def __init__(self, name: str, ids: Tensor, token_mask: Tensor | None = None) -> None:
        self.name, self.ids, self.token_mask = name, ids, token_mask
        self.batch = max(1, TOKENS // ids.shape[1])
        self.arguments: list[list[tuple[tuple, dict]]] = []
        self.activations: Activations | None = None

    def inputs(self) -> Iterator[dict[str, Tensor]]:
        """Yield the model's arguments, in batches."""
        for start in range(0, len(self.ids), self.batch):
            arguments = {"input_ids": self.ids[start : start + self.batch]}
            if self.token_mask is not None:
                arguments["attention_mask"] = self.token_mask[start : start + self.batch].long()
            yield arguments

    def masks(self) -> Iterator[Tensor | None]:
        """Yield which positions of each batch are real."""
        for start in range(0, len(self.ids), self.batch):
            yield None if self.token_mask is None else self.token_mask[start : start + self.batch]


def shared(arguments: list[tuple[tuple, dict]], first: list[tuple[tuple, dict]]) -> list[tuple[tuple, dict]]:
    """The arguments of a batch, with values that equal the first batch's replaced by those, to store them once."""

    def same(value: Any, other: Any) -> Any:
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            equal = value.shape == other.shape and value.dtype == other.dtype and torch.equal(value, other)
            return other if equal else value
        if isinstance(value, tuple) and isinstance(other, tuple) and len(value) == len(other):
            return tuple(same(a, b) for a, b in zip(value, other, strict=True))
        return value

    return [
        (same(args, others), {k: same(v, more.get(k)) for k, v in kwargs.items()})
        for (args, kwargs), (others, more) in zip(arguments, first, strict=True)
    ]
