"""all-MiniLM-L6-v2, trained on the sentences of STS-B's training split by its own FP32 vectors; no score is read."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import minilm
import torch
from encoder import Benchmark, padded
from pictures import shared
from torch import Tensor

from tersor import Task

BATCH = 32


class Sentences:
    """One pass over the sentences, each once, shuffled, as token numbers and masks ``[32, 64]``."""

    def __init__(self, sentences: list[list[int]], batch: int = BATCH) -> None:
        self.sentences, self.batch = sorted({tuple(s) for s in sentences}), batch

    def __len__(self) -> int:
        return len(self.sentences) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.sentences)).tolist()
        for k in range(len(self)):
            yield padded([list(self.sentences[n]) for n in order[k * self.batch : (k + 1) * self.batch]])


def task(*, sentences: int | None = None, held: int | None = None) -> Task:
    """As ``minilm``; the training split trains, the development split ranks.

    Args:
        sentences: of the training split; None: all.
        held: of the development split; None: all.
    """
    folder = shared() / "data/minilm-stsb"
    train, dev = Benchmark(folder, "train"), Benchmark(folder, "dev")
    return replace(
        minilm.task(),
        train=lambda: Sentences(train.sentences[:sentences]),
        validation=lambda: dev.batches(count=held),
    )


@torch.no_grad()
def per_pair(predict: Any, pairs: int | None = None) -> tuple[Tensor, Tensor]:
    """The cosine of each pair of the test split, or of the first ones, and people's score."""
    data = Benchmark(shared() / "data/minilm-stsb", "test")
    count = None if pairs is None else 2 * pairs
    vectors = torch.cat([predict(*batch) for batch in data.batches(count=count)]).unflatten(0, (-1, 2))
    return vectors.prod(1).sum(1), torch.tensor(data.scores[:pairs])
