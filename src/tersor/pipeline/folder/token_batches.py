"""Windows of tokens on their way through the blocks of a model."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tersor.pipeline.folder.activations import Activations

# Tokens that a block computes at once.
TOKENS = 4096


class TokenBatches:
    """Windows of tokens on their way through the blocks.

    Args:
        name: of its files; ids: int64 [windows, length]; token_mask: bool, of the same shape, True for
            real positions; None: all are real.
    """

    def __init__(self, name: str, ids: Tensor, token_mask: Tensor | None = None) -> None:
        self.name, self.ids, self.token_mask = name, ids, token_mask
        self.batch = max(1, TOKENS // ids.shape[1])
        self.arguments: list[list[tuple[tuple, dict]]] = []
        self.activations: Activations | None = None

    def inputs(self) -> Iterator[dict[str, Tensor]]:
        """Arguments of the model, a batch at a time."""
        for start in range(0, len(self.ids), self.batch):
            found = {"input_ids": self.ids[start : start + self.batch]}
            if self.token_mask is not None:
                found["attention_mask"] = self.token_mask[start : start + self.batch].long()
            yield found

    def masks(self) -> Iterator[Tensor | None]:
        """Which positions of each batch are real."""
        for start in range(0, len(self.ids), self.batch):
            yield None if self.token_mask is None else self.token_mask[start : start + self.batch]


def shared(found: list[tuple[tuple, dict]], first: list[tuple[tuple, dict]]) -> list[tuple[tuple, dict]]:
    """The same, with whatever equals the first batch's taken from there: it is kept once."""

    def same(value: Any, other: Any) -> Any:
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            alike = value.shape == other.shape and value.dtype == other.dtype and torch.equal(value, other)
            return other if alike else value
        if isinstance(value, tuple) and isinstance(other, tuple) and len(value) == len(other):
            return tuple(same(a, b) for a, b in zip(value, other, strict=True))
        return value

    return [
        (same(args, others), {k: same(v, more.get(k)) for k, v in kwargs.items()})
        for (args, kwargs), (others, more) in zip(found, first, strict=True)
    ]
