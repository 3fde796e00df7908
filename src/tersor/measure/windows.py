"""A text split into windows of tokens, with the protocol that makes scores comparable."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.errors import MetricError
from tersor.measure.parts.base import ReportPart
from tersor.words import said


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text.

    Args:
        ids: int64 ``[tokens]``, without special tokens.
        bos: the id that starts a text, or None if the tokenizer has none.
        tokenizer: SHA-256 of the tokenizer.
        data: SHA-256 of the text (that of its file, if encoded in UTF-8).
    """

    ids: Tensor
    bos: int | None
    tokenizer: str
    data: str


class TextProtocol(ReportPart):
    """Everything besides the model that a score on a text depends on.

    ``length``: tokens per window, BOS included; ``stride``: tokens from the start of one window to that of the next;
    ``windows``: number of windows; ``tokens``: number of predicted tokens; ``tokenizer`` and ``data``: SHA-256.
    """

    length: int
    stride: int
    bos: bool
    windows: int
    tokens: int
    tokenizer: str
    data: str

    def __str__(self) -> str:
        figures = self.model_dump() | {"tokenizer": self.tokenizer[:12], "text": self.data[:12]}
        if self.bos:
            return said(
                "{windows} windows of {length} tokens with BOS, stride {stride}, {tokens} predicted; tokenizer "
                "{tokenizer}, text {text}",
                **figures,
            )
        return said(
            "{windows} windows of {length} tokens, stride {stride}, {tokens} predicted; tokenizer {tokenizer}, text "
            "{text}",
            **figures,
        )


@dataclass(frozen=True)
class Windows:
    """Windows of tokens, each an independent model input.

    Args:
        ids: int64 ``[windows, length]``.
        protocol: how the text was split.
    """

    ids: Tensor
    protocol: TextProtocol

    def __len__(self) -> int:
        return len(self.ids)

    def skipped(self, window: int) -> int:
        """The number of unscored predictions of a window, which the window before it made with more context."""
        return 0 if window == 0 else self.protocol.length - 1 - self.protocol.stride


def tokens_of(tokenizer: Any, text: str) -> Tokens:
    """Tokenize a whole text, without special tokens.

    Args:
        tokenizer: a transformers tokenizer, or an object with ``encode(text, add_special_tokens=False)``,
            ``get_vocab()`` and ``bos_token_id``.

    Raises:
        MetricError: the text is blank.
    """
    if not text.strip():
        raise MetricError(f"the text has {len(text)} characters and no word: pass the text to predict")
    # transformers' tokenizers warn of a text longer than the model's context, which is split into windows here.
    quiet = {"verbose": False} if hasattr(tokenizer, "backend_tokenizer") else {}
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False, **quiet), dtype=torch.int64)
    return Tokens(ids, tokenizer.bos_token_id, tokenizer_hash(tokenizer), _sha256(text))


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's definition, or of its vocabulary if that is all it exposes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _sha256(json.dumps(sorted(tokenizer.get_vocab().items())))
    # Truncation and padding are settings of the last call, not of the tokenizer.
    definition = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    return _sha256(json.dumps(definition, sort_keys=True))


def windows_of(tokens: Tokens, length: int = 512, stride: int | None = None, limit: int | None = None) -> Windows:
    """Split into windows of ``length`` tokens, each starting with BOS if there is one; a shorter rest is dropped.

    By default the stride is ``length − 1``, so that every token is predicted once. With a smaller stride the windows
    overlap, and each scores only the tokens that the one before it did not. ``limit``: use only the first windows.

    Raises:
        MetricError: the text is shorter than one window, or length, stride or limit is invalid.

    >>> windows = windows_of(Tokens(torch.arange(10, 17), bos=1, tokenizer="", data=""), length=4)
    >>> windows.ids.tolist(), windows.protocol.tokens
    ([[1, 10, 11, 12], [1, 13, 14, 15]], 6)
    >>> windows_of(Tokens(torch.arange(10, 17), bos=None, tokenizer="", data=""), length=4, stride=1).ids[1].tolist()
    [11, 12, 13, 14]
    """
    stride = length - 1 if stride is None else stride
    if length < 2 or not 1 <= stride <= length - 1 or (limit is not None and limit < 1):
        raise MetricError(
            f"windows of {length} tokens with stride {stride} and limit {limit}: length must be at least 2, stride "
            "from 1 to length − 1, and limit at least 1"
        )
    prefix = [] if tokens.bos is None else [tokens.bos]
    needed = length - len(prefix)
    if len(tokens.ids) < needed:
        raise MetricError(
            f"the text has {len(tokens.ids)} tokens, and one window of {length} needs {needed}: "
            "pass more text or a smaller length"
        )
    rows = tokens.ids.unfold(0, needed, stride)[:limit]
    ids = torch.cat([torch.tensor(prefix, dtype=torch.int64).expand(len(rows), -1), rows], 1)
    protocol = TextProtocol(
        length=length,
        stride=stride,
        bos=bool(prefix),
        windows=len(ids),
        tokens=length - 1 + (len(ids) - 1) * stride,
        tokenizer=tokens.tokenizer,
        data=tokens.data,
    )
    return Windows(ids, protocol)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
