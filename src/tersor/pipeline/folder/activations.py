"""The inputs of a block for all windows, stored on disk and read in batches."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


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
        partial = self.at(number).with_suffix(".part")
        with partial.open("wb") as file:
            for x in batches:
                x = x.detach().to(self.dtype).contiguous()
                file.write(x.view(torch.uint8).numpy().data)
        os.replace(partial, self.at(number))

    def drop(self, number: int) -> None:
        """Delete the inputs of a block, if stored."""
        self.at(number).unlink(missing_ok=True)
