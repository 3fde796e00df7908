"""ResNet-20 with zeros in float, distilled from its dense self."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tersor
from benchmarks.common import THREADS
from benchmarks.training.quantized import LOGITS
from benchmarks.training.rows import Place, float_hits, hits, judged, told
from tersor.recipe import Prune, Quantization, Quantize, Recipe, Step, Train

FLOAT = Quantize(
    weights=Quantization(format="fp32"), activations=Quantization(format="fp32"), bias_correction=False
)  # fmt: skip
# The optimizer of the papers, at a rate that a trained network takes.
SGD: dict[str, Any] = {"optimizer": "sgd", "rate": 0.05, "weight_decay": 1e-4, "distill": (LOGITS,)}
FIRST, LAST = 70, 90


def gradual(epochs: int) -> tuple[Step, ...]:
    """Zeros that grow by a cubic while the network trains."""
    sparsity = {"share": LAST / 100, "schedule": "cubic", "until": 0.6}
    return (Train(epochs=epochs, sparsity=sparsity, **SGD),)


def loop(score: str) -> Callable[[int], tuple[Step, ...]]:
    """Score, remove, retrain, twice."""

    def steps(epochs: int) -> tuple[Step, ...]:
        train = Train(epochs=epochs, **SGD | {"rate": 0.01})
        prunes = (Prune(target=f"{share}% weights", score=score, rounds=2) for share in (FIRST, LAST))
        return tuple(step for prune in prunes for step in (prune, train))

    return steps


STEPS: dict[str, Callable[[int], tuple[Step, ...]]] = {
    "gradual": gradual,
    "obs": loop("obs"),
    "magnitude": loop("magnitude"),
}


@dataclass(frozen=True)
class Sparse:
    """One way to 90 % zeros; the top-1 is that of the last epoch.

    Args:
        way: a key of STEPS.
        epochs: passes over all training pictures, of each step `train`.
        minutes: about.
    """

    way: str
    epochs: int
    minutes: float

    def made(self, seed: int) -> Recipe:
        """The recipe; nothing is quantized."""
        return Recipe(steps=(*STEPS[self.way](self.epochs), FLOAT), name=f"sparse-{self.way}", seed=seed)

    def about(self, seed: int) -> dict[str, Any]:
        """The recipe."""
        return {"kind": "sparse", "recipe": self.made(seed).to_yaml(), "seed": seed}

    def __call__(self, place: Place) -> dict[str, Any]:
        """Train, or go on training, and judge."""
        from cifar_training import task

        own = task(**place.sizes)
        done = tersor.finetune(
            own, self.made(place.seed), "torch", folder=place.folder, epochs=place.epochs(self.epochs),
            threads=THREADS, report=False,
        )
        found = judged(hits(own, done.runner, self.way), float_hits("torch", place.sizes["judged"]))
        zeros = done.prunings[-1].zeros
        weights, gone = sum(z.weights for z in zeros), sum(z.zeros for z in zeros)
        layers = {z.layer: z.zeros / z.weights for z in zeros}
        return found | {"zeros": 100 * gone / weights, "zeros_by_layer": layers} | told(done)
