"""Windows of tokens, processed in batches by one block after the other."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tersor.pipeline.folder.activations import Activations

# Tokens per batch.
TOKENS = 4096


class TokenBatches:
    """Windows of tokens with their block inputs and arguments.

    Args:
        name: the name in the files of activations.
        ids: int64 [windows, length].
        token_mask: bool [windows, length], True for real positions; None if all are real.
    """

    def __init__(self, name: str, ids: Tensor, token_mask: Tensor | None = None) -> None:
        self.name, self.ids, self.token_mask = name, ids, token_mask
        self.batch = max(1, TOKENS // ids.shape[1])
        self.arguments: list[list[tuple[tuple, dict]]] = []
        self.activations: Activations | None = None

    def inputs(self) -> Iterator[dict[str, Tensor]]:
        """Yield the model's arguments, in batches."""
        for start in range(0, len(self.ids), self.batch):
            arguments = {"input_ids": self.ids[start : start + self.batch]}
            if self.token_mask is not None:
                arguments["attention_mask"] = self.token_mask[start : start + self.batch].long()
            yield arguments

    def masks(self) -> Iterator[Tensor | None]:
        """Yield which positions of each batch are real."""
        for start in range(0, len(self.ids), self.batch):
            yield None if self.token_mask is None else self.token_mask[start : start + self.batch]


def shared(arguments: list[tuple[tuple, dict]], first: list[tuple[tuple, dict]]) -> list[tuple[tuple, dict]]:
    """The arguments of a batch, with values that equal the first batch's replaced by those, to store them once."""

    def same(value: Any, other: Any) -> Any:
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            equal = value.shape == other.shape and value.dtype == other.dtype and torch.equal(value, other)
            return other if equal else value
        if isinstance(value, tuple) and isinstance(other, tuple) and len(value) == len(other):
            return tuple(same(a, b) for a, b in zip(value, other, strict=True))
        return value

    return [
        (same(args, others), {k: same(v, more.get(k)) for k, v in kwargs.items()})
        for (args, kwargs), (others, more) in zip(arguments, first, strict=True)
    ]
