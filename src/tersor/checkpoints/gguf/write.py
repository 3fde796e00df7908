"""Write networks of the Llama architecture as GGUF, the single file that llama.cpp runs."""

import shutil
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from torch import Tensor

from tersor.checkpoints.gguf.blocks import KINDS, encode, encode_codes
from tersor.checkpoints.gguf.llama import Llama
from tersor.checkpoints.gguf.vocab import vocabulary
from tersor.errors import CheckpointError
from tersor.files import whole_file
from tersor.numerics import QTensor

_ALIGNMENT = 32


def write_gguf(
    path: str | Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor | QTensor]],
    tokenizer: str | Path | None,
    kind: Literal["q4_0", "q8_0", "q4_k", "f16"] = "q4_0",
    ragged: Literal["raise", "f16"] = "raise",
    keep: Collection[str] = (),
) -> dict[str, str]:
    """Write a network to one GGUF file (version 3), tensor by tensor.

    A QTensor keeps its codes and scales bit for bit, in Q4_0 or Q8_0, whatever ``kind`` is: with ``kind="f16"`` the
    file holds the quantized weights exactly, and all other matrices in FP16. A float matrix is rounded to ``kind``: to
    Q4_0 and Q8_0 as llama.cpp does but with the scale as stored, to Q4_K by least squares in each block. Vectors are
    FP32.

    Args:
        path: the file; it appears only once it is complete.
        config: the content of the model's config.json.
        tensors: the parameters by their names in transformers, each once, in any order.
        tokenizer: the folder of tokenizer.json, a BPE with byte fallback; None writes no vocabulary.
        kind: the block type that float matrices are rounded to.
        ragged: whether to raise, or store FP16, for a matrix whose row length is not a multiple of the block (32, or
            256 for Q4_K).
        keep: names of matrices that stay FP16.

    Returns:
        The block type of each tensor.

    Raises:
        CheckpointError: GGUF cannot store the architecture or a tensor (its width, format or groups), a tensor is
            missing or duplicated, or the disk is full; the message names it.

    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    path, folder = Path(path), None if tokenizer is None else Path(tokenizer)
    if kind not in KINDS or kind == "f32":
        raise CheckpointError(f"unknown kind {kind!r}: choose q4_0, q8_0, q4_k or f16")
    model = Llama.of(config)
    metadata = model.metadata() | vocabulary(folder, config["vocab_size"])
    infos: list[_Info] = []
    with whole_file(path, CheckpointError) as whole:
        data = whole.with_suffix(".data")
        try:
            with data.open("wb") as out:
                for name, tensor in tensors:
                    if not model.skips(name):
                        infos.append(_append(out, model, name, tensor, kind, ragged, keep))
                    # Free it before the next one is loaded.
                    del tensor
            model.check_complete([info.source for info in infos])
            matrices = Counter(info.kind for info in infos if len(info.shape) == 2)
            metadata["general.file_type"] = KINDS[matrices.most_common(1)[0][0]].file_type
            with whole.open("wb") as out, data.open("rb") as body:
                out.write(_header(metadata, infos))
                shutil.copyfileobj(body, out, 2**24)
        finally:
            data.unlink(missing_ok=True)
    return {info.source: info.kind for info in infos}


@dataclass(frozen=True)
class _Info:
    """A tensor's entry in the header."""

    source: str
    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int


def _append(
    out: BinaryIO,
    model: Llama,
    name: str,
    tensor: Tensor | QTensor,
    kind: str,
    ragged: str,
    keep: Collection[str],
) -> _Info:
    """Append one tensor to the data."""
    gguf_name, order = model.gguf_name(name), model.row_order(name, tensor.shape[0])
    if isinstance(tensor, QTensor):
        if order is not None:
            parts = {part: getattr(tensor, part)[order] for part in ("codes", "scale", "zero_point")}
            tensor = replace(tensor, **parts)
        kind, content = encode_codes(name, tensor)
    else:
        tensor = tensor.detach() if order is None else tensor.detach()[order]
        kind = _kind_of(name, tensor, kind, ragged, keep)
        content = encode(name, tensor.reshape(-1, tensor.shape[-1]), kind)
    info = _Info(name, gguf_name, tuple(tensor.shape), kind, out.tell())
    out.write(content.numpy().data)
    out.write(bytes(-out.tell() % _ALIGNMENT))
    return info


def _kind_of(name: str, tensor: Tensor, kind: str, ragged: str, keep: Collection[str]) -> str:
    if tensor.ndim == 1:
        return "f32"
    size = KINDS[kind].size
    if name in keep:
        return "f16"
    if tensor.shape[-1] % size == 0:
        return kind
    if ragged == "f16":
        return "f16"
    raise CheckpointError(
        f"{name} has {tensor.shape[-1]} inputs, not a multiple of {size}, the block size of {kind}: "
        "store it in FP16 (--ragged-f16, ragged='f16'), or choose another kind"
    )


def _header(metadata: Mapping[str, Any], infos: list[_Info]) -> bytes:
    """Everything before the data, padded to the alignment."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(infos), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), *_value(value)]
    for info in infos:
        dims = info.shape[::-1]
        parts += [_string(info.name), struct.pack(f"<I{len(dims)}Q", len(dims), *dims)]
        parts += [struct.pack("<IQ", KINDS[info.kind].code, info.offset)]
    header = b"".join(parts)
    return header + bytes(-len(header) % _ALIGNMENT)


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _value(value: Any) -> list[bytes]:
    """A value, preceded by its type code."""
    code, content = _typed(value)
    if code != 9:
        return [struct.pack("<I", code), content]
    # The only integers in lists are token types, which are signed.
    kinds = {str: 8, float: 6, int: 5}
    return [struct.pack("<IIQ", 9, kinds[type(value[0])], len(value)), *(_typed(one)[1] for one in value)]


def _typed(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    return (8, _string(value)) if isinstance(value, str) else (9, b"")
