"""A text cut into windows of tokens, with all that must be pinned before two figures of it can be compared."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.errors import MetricError
from tersor.measure.schema import ReportPart


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text.

    Args:
        ids: int64 ``[tokens]``, without special tokens.
        bos: the id that begins a text, where the tokenizer has one.
        tokenizer, data: SHA-256 of the tokenizer and of the text (that of its file, if written in UTF-8).
    """

    ids: Tensor
    bos: int | None
    tokenizer: str
    data: str


class TextProtocol(ReportPart):
    """What a figure about a text depends on besides the model.

    ``length``: tokens of a window, ``bos`` among them where there is one; ``stride``: tokens from the start of one
    window to that of the next; ``windows``: how many; ``tokens``: how many were predicted; ``tokenizer`` and ``data``:
    SHA-256.
    """

    length: int
    stride: int
    bos: bool
    windows: int
    tokens: int
    tokenizer: str
    data: str

    def __str__(self) -> str:
        begun = " with BOS" if self.bos else ""
        return (
            f"{self.windows} windows of {self.length} tokens{begun}, stride {self.stride}, {self.tokens} predicted; "
            f"tokenizer {self.tokenizer[:12]}, text {self.data[:12]}"
        )


@dataclass(frozen=True)
class Windows:
    """Windows of tokens, each of which a model sees by itself.

    Args:
        ids: int64 ``[windows, length]``.
        protocol: how they came about.
    """

    ids: Tensor
    protocol: TextProtocol

    def __len__(self) -> int:
        return len(self.ids)

    def skipped(self, window: int) -> int:
        """How many predictions of a window are not scored, since the window before it made them with more context."""
        return 0 if window == 0 else self.protocol.length - 1 - self.protocol.stride


def tokens_of(tokenizer: Any, text: str) -> Tokens:
    """The tokens of a text that is not split, without special tokens.

    Args:
        tokenizer: one of transformers, or whatever has ``encode(text, add_special_tokens=False)``, ``get_vocab()``
            and ``bos_token_id``.

    Raises:
        MetricError: there is no text.
    """
    if not text.strip():
        raise MetricError(f"the text holds {len(text)} characters and no word; give the text to be predicted")
    # Of transformers' tokenizers alone: a text longer than the model's context is what we cut.
    quiet = {"verbose": False} if hasattr(tokenizer, "backend_tokenizer") else {}
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False, **quiet), dtype=torch.int64)
    return Tokens(ids, tokenizer.bos_token_id, tokenizer_hash(tokenizer), _sha256(text))


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of how a tokenizer splits; of its vocabulary alone where it does not tell more."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _sha256(json.dumps(sorted(tokenizer.get_vocab().items())))
    # Truncation and padding belong to the last call, not to the tokenizer.
    told = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    return _sha256(json.dumps(told, sort_keys=True))


def windows_of(tokens: Tokens, length: int = 512, stride: int | None = None, limit: int | None = None) -> Windows:
    """Windows of ``length`` tokens, each begun by the tokenizer's BOS where it has one; a shorter rest is left out.

    By default the stride is ``length − 1``, so that every token of the text is predicted once. With a smaller one the
    windows overlap, and each predicts only what the one before it did not. ``limit``: the first so many windows.

    Raises:
        MetricError: the text is shorter than one window, or length, stride or limit make no sense.

    >>> found = windows_of(Tokens(torch.arange(10, 17), bos=1, tokenizer="", data=""), length=4)
    >>> found.ids.tolist(), found.protocol.tokens
    ([[1, 10, 11, 12], [1, 13, 14, 15]], 6)
    >>> windows_of(Tokens(torch.arange(10, 17), bos=None, tokenizer="", data=""), length=4, stride=1).ids[1].tolist()
    [11, 12, 13, 14]
    """
    stride = length - 1 if stride is None else stride
    if length < 2 or not 1 <= stride <= length - 1 or (limit is not None and limit < 1):
        raise MetricError(
            f"windows of {length} tokens with stride {stride} and limit {limit}; give a length from 2, a stride from 1 "
            "to length − 1 and a limit from 1"
        )
    begin = [] if tokens.bos is None else [tokens.bos]
    taken = length - len(begin)
    if len(tokens.ids) < taken:
        raise MetricError(
            f"the text has {len(tokens.ids)} tokens, and one window of {length} takes {taken}; "
            "give more text or a smaller length"
        )
    rows = tokens.ids.unfold(0, taken, stride)[:limit]
    ids = torch.cat([torch.tensor(begin, dtype=torch.int64).expand(len(rows), -1), rows], 1)
    protocol = TextProtocol(
        length=length,
        stride=stride,
        bos=bool(begin),
        windows=len(ids),
        tokens=length - 1 + (len(ids) - 1) * stride,
        tokenizer=tokens.tokenizer,
        data=tokens.data,
    )
    return Windows(ids, protocol)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
