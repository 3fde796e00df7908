"""Export a language model's folder as one file for llama.cpp."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from tersor.arguments import path_of
from tersor.checkpoints.destination import check_file
from tersor.checkpoints.gguf.blocks import has_block_type
from tersor.checkpoints.gguf.write import write_gguf
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.errors import CheckpointError
from tersor.numerics import QTensor
from tersor.pipeline.folder.load import check_sums, open_folder
from tersor.pipeline.folder.metamodel import quiet
from tersor.turns import in_turn

Kind = Literal["q4_0", "q8_0", "q4_k", "f16"]


@in_turn
def export_gguf(
    folder: str | Path,
    path: str | Path,
    kind: Kind = "q4_0",
    *,
    ragged: Literal["raise", "f16"] = "raise",
    force: bool = False,
) -> dict[str, str]:
    """Write a Llama as a GGUF file.

    Weights that ``compress_folder`` quantized in a form that GGUF can store (symmetric, 2 to 4 or 8 bits, per channel
    or in groups of a multiple of 32) keep their codes, with scales in FP16. All other matrices are rounded to ``kind``,
    including other quantized ones.

    Args:
        folder: a folder in the Hugging Face layout, quantized or not.
        path: the file to write.
        kind: the block type for float matrices and for codes that GGUF cannot store.
        ragged: whether a matrix whose rows are not whole blocks raises, or is stored in FP16.

    Returns:
        The block type of each tensor, with ", rounded again" for codes that GGUF cannot store.

    Raises:
        SavedFolderError: the file exists, or cannot be written.
        CheckpointError: GGUF cannot store a weight, which the message names, or the architecture is not Llama.
    """
    folder = path_of("folder", folder, CheckpointError)
    path = check_file(path, ".gguf", force, _files(folder))
    check_sums(folder)
    with quiet():
        source = open_folder(folder)

        rounded_again: set[str] = set()

        def tensors() -> Iterator[tuple[str, Tensor | QTensor]]:
            for name in source.entries:
                codes = None
                if isinstance(source, QuantizedFolder) and name in source.quantized:
                    codes = _stored(source.qtensor(name))
                    rounded_again.update({name} if codes is None else ())
                yield name, source.tensor(name) if codes is None else codes

        tokenizer = folder if (folder / "tokenizer.json").is_file() else None
        kinds = write_gguf(path, source.config, tensors(), tokenizer, kind, ragged)
    return {name: f"{kind}, rounded again" if name in rounded_again else kind for name, kind in kinds.items()}


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _stored(weight: QTensor) -> QTensor | None:
    """The weight with scales rounded to FP16, or None if GGUF cannot store its codes."""
    scale = weight.scale.half().float()
    # Subnormal or overflowing FP16 scales would lose more than the last bits.
    precise = ((scale - weight.scale).abs() <= 2**-10 * weight.scale).all()
    return replace(weight, scale=scale) if has_block_type(weight) and precise else None
