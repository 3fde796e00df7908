"""Quantized weights of a GGUF file of a Llama, read back under the names of transformers."""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tersor.checkpoints.foreign.files import foreign, inside
from tersor.checkpoints.gguf.blocks import KINDS
from tersor.checkpoints.gguf.llama import BLOCK, WHOLE, Llama
from tersor.errors import CheckpointError, NumericsError
from tersor.numerics import QTensor, QuantSpec

# struct's letter for each type of number in the metadata; 8 is text, 9 a list.
_NUMBERS: dict[int, str] = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _LIST = 8, 9


def read_weights(path: Path) -> Iterator[tuple[str, QTensor]]:
    """(name, QTensor) of every matrix in Q4_0 or Q8_0, per group of 32 inputs; those in float are omitted.

    A block with a negative scale, which some writers of Q4_0 choose, represents the same numbers as one with a positive
    scale and the zero point −1; a block with a scale of 0 has codes of 0 and the scale 1.

    Args:
        path: the file, or a folder that contains one.

    Raises:
        CheckpointError: it is not a GGUF file of a Llama, is truncated, or contains a matrix in another block type.
    """
    named = next((found.name for found in sorted(path.glob("*.gguf"))), None) if path.is_dir() else None
    path = path if named is None else inside(path, named, CheckpointError)
    with foreign(CheckpointError, f"{path} is no GGUF file of a Llama, or was cut short", "get it again"):
        if not path.is_file():
            raise ValueError("there is no such file")
        with path.open("rb") as file:
            header = _Header.read(file)
            header.check_size(path.stat().st_size)
            for info in header.infos:
                if len(info.shape) == 2 and info.kind not in ("f32", "f16"):
                    yield header.renamed(info.name), _weight(file, header, info)


@dataclass(frozen=True)
class _Info:
    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) // KINDS[self.kind].size * KINDS[self.kind].nbytes


@dataclass(frozen=True)
class _Header:
    """The part before the data, and the offset of the data."""

    metadata: dict[str, Any]
    infos: list[_Info]
    start: int

    @classmethod
    def read(cls, file: BinaryIO) -> "_Header":
        magic, version, tensors, pairs = struct.unpack("<4sIQQ", file.read(24))
        if (magic, version) != (b"GGUF", 3):
            raise ValueError(f"it begins with {magic!r}, version {version}")
        metadata = {}
        for _ in range(pairs):
            key = _text(file)
            metadata[key] = _value(file, *_unpacked(file, "I"))
        if metadata["general.architecture"] != "llama":
            raise ValueError(f"its architecture is {metadata['general.architecture']!r}")
        infos = [_info(file) for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        return cls(metadata, infos, -(-file.tell() // alignment) * alignment)

    def check_size(self, size: int) -> None:
        """Raise ValueError if a file of ``size`` bytes ends before its last tensor does."""
        for info in self.infos:
            if self.start + info.offset + info.nbytes > size:
                raise ValueError(f"it ends within {info.name}")

    def renamed(self, name: str) -> str:
        """The name in transformers."""
        whole = {there: here for here, there in WHOLE.items()}
        if name in whole:
            return whole[name]
        layers = {there: here for here, there in BLOCK.items()}
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if match is None or match[2] not in layers:
            raise ValueError(f"its tensor {name} is none of a Llama")
        return f"model.layers.{match[1]}.{layers[match[2]]}.{match[3]}"

    def order(self, name: str, rows: int) -> Tensor | None:
        """The row order used by the writer."""
        heads = self.metadata["llama.attention.head_count"]
        groups = self.metadata.get("llama.attention.head_count_kv", heads)
        return Llama({"num_attention_heads": heads, "num_key_value_heads": groups}).row_order(name, rows)


def _weight(file: BinaryIO, header: _Header, info: _Info) -> QTensor:
    rows = info.shape[0]
    name = header.renamed(info.name)
    if info.kind not in _DECODE:
        raise CheckpointError(
            f"{name} is in {info.kind}, whose blocks have no zero points; matrices in {', '.join(_DECODE)} are read"
        )
    file.seek(header.start + info.offset)
    content = file.read(info.nbytes)
    blocks = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(rows, -1, KINDS[info.kind].nbytes)
    scale = blocks[..., :2].contiguous().view(torch.float16).squeeze(-1).float()
    codes, zero_point = _DECODE[info.kind](blocks[..., 2:]), torch.zeros_like(scale)
    negative, dead = scale < 0, scale == 0
    codes = torch.where(negative[..., None], -1 - codes, codes).masked_fill(dead[..., None], 0).flatten(1)
    scale, zero_point = scale.abs().masked_fill(dead, 1.0), zero_point.masked_fill(negative, -1.0)
    order = header.order(name, rows)
    if order is not None:
        codes, scale, zero_point = (t[order.argsort()] for t in (codes, scale, zero_point))
    bits = 4 if info.kind == "q4_0" else 8
    spec = QuantSpec(f"int{bits}", "group:32", symmetric=not negative.any(), scale_dtype="float16")
    try:
        return QTensor(codes.to(torch.int8).contiguous(), scale, zero_point, spec)
    except NumericsError as error:
        raise CheckpointError(f"{name}: {error}; the file is damaged: get it again") from error


def _q4_0(nibbles: Tensor) -> Tensor:
    """Each byte holds one code of the first half of its block and one of the second, counted from −8."""
    return torch.cat([nibbles & 15, nibbles >> 4], dim=-1).to(torch.int16) - 8


def _q8_0(codes: Tensor) -> Tensor:
    return codes.contiguous().view(torch.int8).to(torch.int16)


_DECODE: dict[str, Callable[[Tensor], Tensor]] = {"q4_0": _q4_0, "q8_0": _q8_0}


def _unpacked(file: BinaryIO, letters: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{letters}", file.read(struct.calcsize(f"<{letters}")))


def _text(file: BinaryIO) -> str:
    (length,) = _unpacked(file, "Q")
    if length > 1 << 24:
        raise ValueError(f"a text of {length} bytes")
    return file.read(length).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _TEXT:
        return _text(file)
    if kind == _LIST:
        inner, count = _unpacked(file, "IQ")
        return [_value(file, inner) for _ in range(count)]
    return _unpacked(file, _NUMBERS[kind])[0]


def _info(file: BinaryIO) -> _Info:
    name = _text(file)
    (count,) = _unpacked(file, "I")
    if count > 8:
        raise ValueError(f"{name} has {count} dimensions")
    dims = _unpacked(file, f"{count}Q")
    code, offset = _unpacked(file, "IQ")
    kinds = {kind.code: key for key, kind in KINDS.items()}
    if code not in kinds:
        raise CheckpointError(f"{name} is in GGUF's type {code}; read are {', '.join(kinds.values())}")
    return _Info(name, dims[::-1], kinds[code], offset)
