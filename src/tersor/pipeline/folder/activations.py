"""Windows of tokens in batches, and the inputs of a block for all windows, stored on disk."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.files import whole_file
from tersor.training.language.blocks import BlockBatch

# Tokens per batch.
TOKENS = 4096


@dataclass(frozen=True)
class Activations:
    """The inputs of each block, ``[windows, length, width]``, one file per block.

    Args:
        folder: the folder of the files.
        name: the name in the file names, since several sequences may go through the same blocks.
        batch: windows per read.
        device: where ``read`` puts them.
    """

    folder: Path
    name: str
    windows: int
    length: int
    width: int
    dtype: torch.dtype
    batch: int
    device: torch.device | str = "cpu"

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
                yield torch.frombuffer(raw, dtype=self.dtype).reshape(shape).to(self.device)

    def rows(self, number: int, chosen: slice) -> Tensor:
        """The inputs of a block for some windows, ``[windows, length, width]``; no others are read."""
        count = self.windows * self.length * self.width
        flat = torch.from_file(str(self.at(number)), shared=False, size=count, dtype=self.dtype)
        return flat.reshape(self.windows, self.length, self.width)[chosen].clone().to(self.device)

    def write(self, number: int, batches: Iterable[Tensor]) -> None:
        """Write the inputs of a block atomically."""
        with whole_file(self.at(number)) as part, part.open("wb") as file:
            for x in batches:
                x = x.detach().to("cpu", self.dtype).contiguous()
                file.write(x.view(torch.uint8).numpy().data)

    def drop(self, number: int) -> None:
        """Delete the inputs of a block, if stored."""
        self.at(number).unlink(missing_ok=True)


class TokenBatches:
    """Windows of tokens with their block inputs and arguments.

    Args:
        name: the name in the files of activations.
        ids: int64 [windows, length], on the device that computes.
        token_mask: bool [windows, length], True for real positions; None if all are real.
        batch: windows in each batch; by default as many as have ``TOKENS`` tokens.
    """

    def __init__(self, name: str, ids: Tensor, token_mask: Tensor | None = None, batch: int | None = None) -> None:
        self.name, self.ids, self.token_mask = name, ids, token_mask
        self.batch = batch or max(1, TOKENS // ids.shape[1])
        self.arguments: list[list[tuple[tuple, dict]]] = []
        self.activations: Activations | None = None

    def store_in(self, folder: Path, width: int, dtype: torch.dtype) -> Activations:
        """Keep the inputs of blocks, ``[windows, length, width]``, in a folder; they are read to the tokens' device."""
        windows, length = self.ids.shape
        place = self.ids.device
        self.activations = Activations(folder, self.name, windows, length, width, dtype, self.batch, place)
        return self.activations

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


@dataclass(frozen=True, eq=False)
class BlockCalls:
    """The calls of one block on the calibration text.

    Args:
        calibration: the text behind the blocks that are quantized already.
        reference: the same text in the float model, whose next inputs are stored.
        number: of the block.
    """

    calibration: TokenBatches
    reference: TokenBatches
    number: int

    def __len__(self) -> int:
        return math.ceil(len(self.calibration.ids) / self.calibration.batch)

    def __call__(self, k: int) -> BlockBatch:
        """Batch ``k``, read from the disk."""
        text, followed = self.calibration, self.reference
        assert text.activations is not None
        assert followed.activations is not None
        rows = slice(k * text.batch, (k + 1) * text.batch)
        args, kwargs = text.arguments[k][self.number]
        mask = None if text.token_mask is None else text.token_mask[rows]
        target = followed.activations.rows(self.number + 1, rows)
        return BlockBatch(text.activations.rows(self.number, rows), args, kwargs, target, mask)


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
