"""A folder of a language model as one file for llama.cpp."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from tersor.checkpoints.gguf.blocks import has_block_type
from tersor.checkpoints.gguf.write import write_gguf
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.errors import SavedFolderError
from tersor.numerics import QTensor
from tersor.pipeline.folder.load import check_sums, opened
from tersor.pipeline.folder.metamodel import quiet

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

    What ``compress_folder`` solved on a grid that GGUF has (symmetric, 2 to 4 or 8 bits, per channel or in groups of a
    multiple of 32) keeps its codes; scales become FP16, as they are stored there. Other matrices are rounded to
    ``kind``, also those that were quantized before.

    Args:
        folder: in the Hugging Face layout, quantized or not.
        path: the file to write.
        kind: of float matrices, and of those whose grid GGUF lacks.
        ragged: whether a matrix that the blocks do not divide is an error or stays FP16.

    Returns:
        The kind of each tensor in the file, with ", rounded again" where one was quantized on another grid.

    Raises:
        SavedFolderError: the file exists.
        CheckpointError: a weight that GGUF cannot hold, by name, or an architecture other than Llama's.
    """
    folder, path = Path(folder), Path(path)
    if path.exists() and not force:
        raise SavedFolderError(f"{path} exists: choose another name, or overwrite it with --force (force=True)")
    check_sums(folder)
    with quiet():
        source = opened(folder)

        again: set[str] = set()

        def tensors() -> Iterator[tuple[str, Tensor | QTensor]]:
            for name in source.entries:
                kept = None
                if isinstance(source, QuantizedFolder) and name in source.quantized:
                    kept = _stored(source.qtensor(name))
                    again.update({name} if kept is None else ())
                yield name, source.tensor(name) if kept is None else kept

        tokenizer = folder if (folder / "tokenizer.json").is_file() else None
        found = write_gguf(path, source.config, tensors(), tokenizer, kind, ragged)
    return {name: f"{kind}, rounded again" if name in again else kind for name, kind in found.items()}


def _stored(codes: QTensor) -> QTensor | None:
    """The same codes with the scales that GGUF stores; None where it has no such grid."""
    scale = codes.scale.half().float()
    # Far from FP16's normal numbers a scale would lose more than its last bits.
    near = ((scale - codes.scale).abs() <= 2**-10 * codes.scale).all()
    return replace(codes, scale=scale) if has_block_type(codes) and near else None
