"""Checks of a language model's prompt before it runs, the same for every engine."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.arguments import whole
from tersor.checkpoints.hf_folder import HfFolder
from tersor.errors import TaskError
from tersor.pipeline.folder.records import check_characters
from tersor.pipeline.folder.text import positions

_INTEGERS = (torch.int64, torch.int32)


def check_prompt(prompt: str) -> None:
    """Reject a prompt that no tokenizer accepts.

    Raises:
        TaskError: it is empty, or contains a lone surrogate.
    """
    if not prompt:
        raise TaskError("the prompt is empty: give the beginning of a text")
    check_characters(prompt, "the prompt")


def check_tokens(folder: Path, tokens: Any, more: Any) -> None:
    """Refuse to continue ``tokens`` by ``more`` in the model of a folder; an argument of None is not checked.

    Raises:
        TaskError: they are not tokens, not in the model's vocabulary, or more than the model has positions for.
    """
    if more is not None:
        more = whole("max_new_tokens", more, 1, None, "it is the largest number of new tokens", TaskError)
    if tokens is None or not (folder / "config.json").is_file():
        return
    config = HfFolder(folder).config
    if config.get("is_encoder_decoder"):  # whose encoder may read audio, and whose output starts afresh
        return
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not tokens.numel() or tokens.dtype not in _INTEGERS:
        shape = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TaskError(f"input_ids must be tokens, a tensor int64 [batch, length], not {shape}")
    _check_vocabulary(tokens, config)
    longest, asked = positions(config), tokens.shape[1] + (more or 0)
    if longest is not None and asked > longest:
        raise TaskError(
            f"a prompt of {tokens.shape[1]} tokens and {more or 0} more are {asked}, and {folder} takes at most "
            f"{longest} (config.json): shorten the prompt, or generate at most {max(0, longest - tokens.shape[1])}"
        )


def _check_vocabulary(tokens: Tensor, config: dict[str, Any]) -> None:
    part = config.get("text_config")
    known = config.get("vocab_size", part.get("vocab_size") if isinstance(part, dict) else None)
    least, most = int(tokens.min()), int(tokens.max())
    if least < 0 or (isinstance(known, int) and most >= known):
        raise TaskError(f"tokens from {least} to {most}, but the model knows {known}: use its own tokenizer")
