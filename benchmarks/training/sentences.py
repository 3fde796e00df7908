"""MiniLM in 4-bit weights and 8-bit activations, trained by its own vectors, judged on the STS benchmark."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tersor
from benchmarks.common import THREADS, say
from benchmarks.training.quantized import trained, with_formats
from benchmarks.training.rows import Place, told
from tersor.metrics import spearman
from tersor.recipe import Recipe


@dataclass(frozen=True)
class Sentences:
    """Spearman's correlation on the test split: FP32, after post-training quantization, and trained.

    Args:
        epochs: passes over all training sentences.
        rate: of AdamW, chosen by the held-out loss on the development split.
        minutes: about.
    """

    epochs: int
    rate: float
    minutes: float

    def made(self, seed: int) -> Recipe:
        """The preset int4-qat with 8-bit activations."""
        found = trained(with_formats("int4-qat", "w4a8-qat", {}, "uint8"), epochs=self.epochs, rate=self.rate)
        return found.model_copy(update={"seed": seed})

    def about(self, seed: int) -> dict[str, Any]:
        """The recipe."""
        return {"kind": "sentences", "recipe": self.made(seed).to_yaml(), "seed": seed}

    def __call__(self, place: Place) -> dict[str, Any]:
        """Train, or go on training, and judge."""
        from minilm_training import per_pair, task

        sizes: dict[str, Any] = {"sentences": 256, "held": 64} if place.quick else {}
        pairs, draws = (64, 50) if place.quick else (None, 2000)
        own, recipe = task(**sizes), self.made(place.seed)
        before, people = per_pair(own.model, pairs)
        untrained = recipe.model_copy(update={"steps": recipe.steps[:1]})
        rounded = tersor.compress(own, untrained, "torch", threads=THREADS, report=False, progress=False)
        say("minilm: training")
        done = tersor.finetune(
            own, recipe, "torch", folder=place.folder, epochs=place.epochs(self.epochs), threads=THREADS, report=False
        )
        vectors = {"rounded": per_pair(rounded.runner, pairs)[0], "spearman": per_pair(done.runner, pairs)[0]}
        found = {name: 100 * spearman(x, people) for name, x in vectors.items()}
        lost, interval = difference(before, vectors["spearman"], people, draws)
        return {**found, "float": 100 * spearman(before, people), "lost": lost, "lost_interval": interval} | told(done)


def difference(before: Tensor, after: Tensor, people: Tensor, draws: int) -> tuple[float, list[float]]:
    """What Spearman's correlation lost, times 100, and its 95 % bootstrap interval over pairs of sentences.

    >>> x = torch.arange(50.0)
    >>> difference(x, x, x, 20)
    (0.0, [0.0, 0.0])
    """

    def lost(chosen: Any) -> float:
        return 100 * (spearman(before[chosen], people[chosen]) - spearman(after[chosen], people[chosen]))

    rng = np.random.default_rng(0)
    drawn = [lost(torch.from_numpy(rng.integers(0, len(people), len(people)))) for _ in range(draws)]
    return lost(slice(None)), [float(x) for x in np.percentile(drawn, [2.5, 97.5])]
