"""Texts and conversations, as files or objects, or tokens, cut into windows for a model."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.checkpoints.hf_folder import HfFolder
from tersor.errors import CheckpointError, MetricError, TaskError
from tersor.measure.windows import TextProtocol, Tokens, Windows, tokens_of, windows_of
from tersor.pipeline.folder.metamodel import import_transformers
from tersor.pipeline.folder.records import SUFFIXES, Message, join, read_records, read_text

Data = str | Path | Sequence[str | Sequence[Message]] | Tensor
"""A text; the path of a text file, or of a .jsonl or .json file of texts and conversations; several texts and
conversations (lists of messages ``{"role": ..., "content": ...}``); or tokens int64 [windows, length]."""


def positions(config: dict[str, Any]) -> int | None:
    """How many tokens a model takes at once; None where its config.json does not say."""
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(config.get(key), int):
            return config[key]
    return None


def windows(data: Data, folder: HfFolder, length: int, limit: int | None, given: str = "data") -> Windows:
    """Windows of ``length`` tokens, the first ``limit``; ``given`` is what errors call the text.

    Texts are joined by an empty line, conversations are written by the tokenizer's chat template (`records.join`). Each
    window is begun by BOS where the tokenizer has one; a BOS that the text itself has there is that one.

    Raises:
        TaskError: a file or a record that cannot be read, tokens of another shape, more of them than the model takes
            at once, or a limit below 1.
        MetricError: a text shorter than one window.
        CheckpointError: text, and no tokenizer; a conversation, and no chat template.
    """
    most = positions(folder.config)
    taken = data.shape[-1] if isinstance(data, Tensor) and data.ndim else length
    if most is not None and taken > most:
        raise TaskError(
            f"windows of {taken} tokens, and by its config.json {folder.path} takes {most} at once; give shorter ones "
            f"(--length {most})"
        )
    if limit is not None and limit < 1:
        raise TaskError(f"{limit} windows are none; give --samples from 1")
    if isinstance(data, Tensor):
        if data.ndim != 2 or data.dtype != torch.int64:
            raise TaskError(f"tokens must be int64 [windows, length], not {data.dtype} {list(data.shape)}")
        if data.numel() == 0 or data.shape[1] < 2:
            raise TaskError(f"tokens of shape {list(data.shape)} hold no window of two tokens or more")
        return _cut(data[:limit])
    records = _records(data)
    tokenizer = tokenizer_of(folder.path)
    try:
        return windows_of(_begun_once(tokens_of(tokenizer, join(records, tokenizer)), length), length, limit=limit)
    except MetricError as error:
        path = "; a path with another ending than .txt or .jsonl goes in as pathlib.Path" if _like_a_path(data) else ""
        raise MetricError(f"{given}: {error}{path}") from error


def _like_a_path(data: Data) -> bool:
    return isinstance(data, str) and len(data.split()) == 1


def _cut(ids: Tensor) -> Windows:
    """Tokens that the caller has cut himself."""
    journal_row = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    count, length = ids.shape
    tokens = count * (length - 1)
    return Windows(ids, TextProtocol(
        length=length, stride=length - 1, bos=False, windows=count, tokens=tokens, tokenizer="", data=journal_row
    ))  # fmt: skip


def _begun_once(tokens: Tokens, length: int) -> Tokens:
    """Without each BOS in front of which a window would put its own."""
    if tokens.bos is None:
        return tokens
    kept, start, taken = [], 0, max(1, length - 1)
    while start < len(tokens.ids):
        start += int(tokens.ids[start] == tokens.bos)
        kept.append(tokens.ids[start : start + taken])
        start += taken
    return replace(tokens, ids=torch.cat(kept)) if kept else tokens


def _records(data: str | Path | Sequence[Any]) -> list[tuple[str, Any]]:
    """Texts and conversations, each with where it stands."""
    if not isinstance(data, str | Path):
        return [(f"item {k} of the sequence", item) for k, item in enumerate(data)]
    path = Path(data)
    suffix = path.suffix.lower()
    if not isinstance(data, Path) and (len(data) >= 1024 or suffix not in (".txt", ".md", ".text", *SUFFIXES)):
        return [("the text", data)]
    return read_records(path) if suffix in SUFFIXES else [(str(path), read_text(path))]


def tokenizer_of(path: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        CheckpointError: there is none, or it is no folder of a model.
    """
    if not any((path / name).is_file() for name in ("config.json", "tokenizer_config.json")):
        raise CheckpointError(f"{path} holds no config.json; give a folder in the Hugging Face layout")
    transformers = import_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"{path} has no tokenizer that can be read ({str(error).splitlines()[0][:200]}); copy tokenizer.json and "
            "tokenizer_config.json there, or give tokens (a tensor int64 [windows, length]) instead of text"
        ) from error
