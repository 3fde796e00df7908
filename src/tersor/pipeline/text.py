"""Text, as a file or a string or tokens, cut into windows for a model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.checkpoints.hf_folder import HfFolder
from tersor.errors import CheckpointError, TaskError
from tersor.measure.windows import TextProtocol, Windows, tokens_of, windows_of
from tersor.pipeline.skeleton import import_transformers

Data = str | Path | Sequence[str] | Tensor
"""A text, the path of a text file, several texts, or tokens int64 [windows, length]."""


def positions(config: dict[str, Any]) -> int:
    """How many tokens a model takes at once, as its config.json says; else 512."""
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(config.get(key), int):
            return config[key]
    return 512


def windows(data: Data, folder: HfFolder, length: int, limit: int | None) -> Windows:
    """Windows of ``length`` tokens, the first ``limit``.

    Raises:
        TaskError: a file that cannot be read, or tokens of another shape.
        MetricError: a text shorter than one window.
        CheckpointError: text, and no tokenizer.
    """
    if isinstance(data, Tensor):
        if data.ndim != 2 or data.dtype != torch.int64:
            raise TaskError(f"tokens must be int64 [windows, length], not {data.dtype} {list(data.shape)}")
        if data.numel() == 0 or data.shape[1] < 2:
            raise TaskError(f"tokens of shape {list(data.shape)} hold no window of two tokens or more")
        return _cut(data[:limit])
    text = _read(data)
    return windows_of(tokens_of(tokenizer_of(folder.path), text), length, limit=limit)


def _cut(ids: Tensor) -> Windows:
    """Tokens that the caller has cut himself."""
    told = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    count, length = ids.shape
    tokens = count * (length - 1)
    return Windows(ids, TextProtocol(
        length=length, stride=length - 1, bos=False, windows=count, tokens=tokens, tokenizer="", data=told
    ))  # fmt: skip


def _read(data: str | Path | Sequence[str]) -> str:
    if isinstance(data, str | Path):
        path = Path(data)
        if isinstance(data, Path) or (len(str(data)) < 1024 and path.suffix in (".txt", ".md", ".text")):
            try:
                return path.read_text(encoding="utf8")
            except (OSError, UnicodeDecodeError) as error:
                raise TaskError(f"{path} cannot be read as text ({error}); give a UTF-8 text file") from error
        return str(data)
    return "\n\n".join(data)


def tokenizer_of(path: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        CheckpointError: there is none.
    """
    transformers = import_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"{path} has no tokenizer that can be read ({str(error).splitlines()[0][:200]}); copy tokenizer.json and "
            "tokenizer_config.json there, or give tokens (a tensor int64 [windows, length]) instead of text"
        ) from error
