"""The inputs of a block for all windows, on disk: read a batch at a time, replaced by the outputs at the end."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Activations:
    """A sequence of ``[windows, length, width]`` for each block.

    Args:
        folder: where the files are.
        name: of this sequence: two of them may go through the same blocks.
        batch: windows that are read at once.
    """

    folder: Path
    name: str
    windows: int
    length: int
    width: int
    dtype: torch.dtype
    batch: int

    def at(self, number: int) -> Path:
        """The file of a block's inputs."""
        return self.folder / f"{self.name}-{number}.bin"

    def ready(self, number: int) -> bool:
        """Whether the inputs of a block are there, whole."""
        path = self.at(number)
        return path.is_file() and path.stat().st_size == self.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of one file; two are there while a block is computed."""
        return self.windows * self.length * self.width * self.dtype.itemsize

    def read(self, number: int) -> Iterator[Tensor]:
        """The inputs of a block, ``[batch, length, width]`` each."""
        with self.at(number).open("rb") as file:
            for start in range(0, self.windows, self.batch):
                shape = (min(self.batch, self.windows - start), self.length, self.width)
                raw = bytearray(torch.Size(shape).numel() * self.dtype.itemsize)
                file.readinto(raw)
                yield torch.frombuffer(raw, dtype=self.dtype).reshape(shape)

    def write(self, number: int, batches: Iterable[Tensor]) -> None:
        """The inputs of a block, whole or not at all."""
        part = self.at(number).with_suffix(".part")
        with part.open("wb") as file:
            for x in batches:
                x = x.detach().to(self.dtype).contiguous()
                file.write(x.view(torch.uint8).numpy().data)
        os.replace(part, self.at(number))

    def drop(self, number: int) -> None:
        """Delete the inputs of a block, if they are there."""
        self.at(number).unlink(missing_ok=True)
