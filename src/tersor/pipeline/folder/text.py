"""Split texts, conversations (as files or objects) or tokens into windows for a model."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.checkpoints.architecture import open_tokenizer
from tersor.checkpoints.hf_folder import HfFolder
from tersor.errors import CheckpointError, MetricError, TaskError
from tersor.measure.windows import TextProtocol, Tokens, Windows, tokens_of, windows_of
from tersor.pipeline.folder.records import SUFFIXES, Message, join, read_records, read_text

Data = str | Path | Sequence[str | Sequence[Message]] | Tensor
"""A text; the path of a text file, or of a .jsonl or .json file of texts and conversations; several texts and
conversations (lists of messages ``{"role": ..., "content": ...}``); or tokens int64 [windows, length]."""


def positions(config: dict[str, Any]) -> int | None:
    """The maximum sequence length of a model, or None if its config.json does not give it."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    # The angles of dynamic NTK grow with the sequence, up to that factor.
    grows = scaling.get("rope_type", scaling.get("type")) == "dynamic"
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(config.get(key), int):
            return int(config[key] * (scaling.get("factor") or 1)) if grows else config[key]
    part = config.get("text_config")
    return positions(part) if isinstance(part, dict) else None


def windows(data: Data, folder: HfFolder, length: int, limit: int | None, given: str = "data") -> Windows:
    """The first ``limit`` windows of ``length`` tokens; ``given`` is the name of the data in errors.

    Texts are joined by an empty line, conversations are formatted by the tokenizer's chat template (`records.join`).
    Each window starts with BOS if the tokenizer has one; a BOS that the text has there is not repeated.

    Raises:
        TaskError: a file or record cannot be read, tokens have a wrong shape or are longer than the model supports, or
            the limit is below 1.
        MetricError: the text is shorter than one window.
        CheckpointError: there is no tokenizer for a text, or no chat template for a conversation.
    """
    longest = positions(folder.config)
    size = data.shape[-1] if isinstance(data, Tensor) and data.ndim else length
    if longest is not None and size > longest:
        raise TaskError(
            f"windows have {size} tokens, but {folder.path} supports at most {longest} (config.json): use shorter "
            f"windows (--length {longest})"
        )
    if limit is not None and limit < 1:
        raise TaskError(f"--samples is {limit}: it must be at least 1")
    if isinstance(data, Tensor):
        if data.ndim != 2 or data.dtype != torch.int64:
            raise TaskError(f"tokens must be int64 [windows, length], not {data.dtype} {list(data.shape)}")
        if data.numel() == 0 or data.shape[1] < 2:
            raise TaskError(f"tokens of shape {list(data.shape)} have no window of at least two tokens")
        return _given_windows(data[:limit].cpu())
    records = _records(data, given)
    tokenizer = tokenizer_of(folder.path)
    try:
        return windows_of(_without_bos(tokens_of(tokenizer, join(records, tokenizer)), length), length, limit=limit)
    except MetricError as error:
        path = "; pass a path with an ending other than .txt or .jsonl as pathlib.Path" if _like_a_path(data) else ""
        raise MetricError(f"{given}: {error}{path}") from error


def _like_a_path(data: Data) -> bool:
    return isinstance(data, str) and len(data.split()) == 1


def _given_windows(ids: Tensor) -> Windows:
    """Windows that the caller passed as tokens."""
    digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    count, length = ids.shape
    tokens = count * (length - 1)
    return Windows(ids, TextProtocol(
        length=length, stride=length - 1, bos=False, windows=count, tokens=tokens, tokenizer="", data=digest
    ))  # fmt: skip


def _without_bos(tokens: Tokens, length: int) -> Tokens:
    """Remove each BOS at the start of a window, where one is added."""
    if tokens.bos is None:
        return tokens
    kept, start, size = [], 0, max(1, length - 1)
    while start < len(tokens.ids):
        start += int(tokens.ids[start] == tokens.bos)
        kept.append(tokens.ids[start : start + size])
        start += size
    return replace(tokens, ids=torch.cat(kept)) if kept else tokens


def _records(data: Any, given: str) -> list[tuple[str, Any]]:
    """Texts and conversations, each with its location."""
    if isinstance(data, bytes) or not isinstance(data, str | Path | Sequence):
        raise TaskError(
            f"{given} is {data!r:.60}, a {type(data).__name__}: give a text, the path of one, a list of texts or "
            "conversations, or tokens (a tensor int64 [windows, length])"
        )
    if not isinstance(data, str | Path):
        return [(f"item {k} of the sequence", item) for k, item in enumerate(data)]
    path = Path(data)
    suffix = path.suffix.lower()
    if not isinstance(data, Path) and (len(data) >= 1024 or suffix not in (".txt", ".md", ".text", *SUFFIXES)):
        return [("the text", data)]
    return read_records(path) if suffix in SUFFIXES else [(str(path), read_text(path))]


def tokenizer_of(path: Path) -> Any:
    """Load the tokenizer of a folder.

    Raises:
        CheckpointError: there is none, or the folder is not a model's.
    """
    if not any((path / name).is_file() for name in ("config.json", "tokenizer_config.json")):
        raise CheckpointError(f"{path} has no config.json: pass a folder in the Hugging Face layout")
    return open_tokenizer(path)
