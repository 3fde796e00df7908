"""A folder of a language model as one file for llama.cpp."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tersor.checkpoints.gguf import write_gguf
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.errors import SavedFolderError
from tersor.numerics import QTensor
from tersor.pipeline.language_load import check_sums, opened
from tersor.pipeline.skeleton import quiet

Kind = Literal["q4_0", "q8_0", "q4_k", "f16"]


def export_gguf(
    folder: str | Path,
    path: str | Path,
    kind: Kind = "q4_0",
    *,
    ragged: Literal["raise", "f16"] = "raise",
    force: bool = False,
) -> dict[str, str]:
    """Write a Llama as a GGUF file.

    What ``compress_folder`` solved on a grid that GGUF has (int4 symmetric in groups of 32 with FP16 scales, or int8)
    keeps its codes bit by bit; float matrices are rounded to ``kind``.

    Args:
        folder: in the Hugging Face layout, quantized or not.
        path: the file to write.
        kind: of float matrices.
        ragged: whether a matrix that the blocks do not divide is an error or stays FP16.

    Returns:
        The kind of each tensor in the file.

    Raises:
        SavedFolderError: the file exists.
        CheckpointError: a weight that GGUF cannot hold, by name, or an architecture other than Llama's.
    """
    folder, path = Path(folder), Path(path)
    if path.exists() and not force:
        raise SavedFolderError(f"{path} exists and is kept; choose another name, or give --force (force=True)")
    check_sums(folder)
    with quiet():
        source = opened(folder)

        def tensors() -> Iterator[tuple[str, Tensor | QTensor]]:
            for name in source.entries:
                quantized = isinstance(source, QuantizedFolder) and name in source.quantized
                codes = source.qtensor(name) if quantized else None  # type: ignore[attr-defined]
                yield name, codes if codes is not None and _fits(codes) else source.tensor(name)

        tokenizer = folder if (folder / "tokenizer.json").is_file() else None
        return write_gguf(path, source.config, tensors(), tokenizer, kind, ragged)


def _fits(codes: QTensor) -> bool:
    """Whether GGUF has this grid: 4 or 8 bits, symmetric, 32 inputs to a scale of FP16."""
    spec = codes.spec
    grouped = spec.granularity.kind == "group" and spec.granularity.size == 32
    kind = spec.symmetric and spec.format.name in ("int4", "int8")
    return kind and grouped and torch.equal(codes.scale, codes.scale.half().float())
