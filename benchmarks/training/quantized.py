"""ResNet-20 trained with its quantizers, from its FP32 weights and by its FP32 scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tersor
from benchmarks.common import THREADS
from benchmarks.training.rows import Place, float_hits, hits, judged, told
from tersor.recipe import Recipe, Train, resolve

LOGITS = {"logits": {"temperature": 4.0}}


def trained(recipe: Recipe, **options: Any) -> Recipe:
    """The recipe with other options of its step `train`."""
    steps = [s.model_copy(update=options) if isinstance(s, Train) else s for s in recipe.steps]
    return Recipe(steps=tuple(steps), name=recipe.name, seed=recipe.seed)


def with_formats(base: str, name: str, weights: dict[str, Any], activations: str) -> Recipe:
    """A preset with other formats, its ends unchanged.

    >>> with_formats("int4-qat", "int3-qat", {"format": "int3"}, "uint4").quantize.weights.format
    'int3'
    """
    found = resolve(base)
    own, inputs = found.quantize.weights, found.quantize.activations
    formats = {
        "weights": own.model_copy(update=weights),
        "activations": inputs.model_copy(update={"format": activations}),
    }
    return found.model_copy(update={"name": name, **formats})


BINARY = {"format": "binary", "range": "minmax", "symmetric": None}

RECIPES: dict[str, Callable[[], Recipe]] = {
    "w8a8": lambda: resolve("int8-qat"),
    "w4a4": lambda: resolve("int4-qat"),
    "w3a3": lambda: trained(with_formats("int4-qat", "int3-qat", {"format": "int3"}, "uint3"), rate=1e-3),
    "w2a2": lambda: resolve("int2-qat"),
    "ternary": lambda: resolve("ternary"),
    "binary": lambda: resolve("binary"),
    "w1a1": lambda: trained(with_formats("int2-qat", "binary-qat", BINARY, "uint1"), rate=1e-3),
    "admm-ternary": lambda: trained(resolve("ternary"), proximal={"admm": {"set": "ternary"}}),
    "admm-binary": lambda: trained(resolve("binary"), proximal={"admm": {"set": "binary"}}),
}


@dataclass(frozen=True)
class Quantized:
    """One recipe; the top-1 is that of the last epoch.

    Args:
        recipe: a key of RECIPES.
        epochs: passes over all training pictures.
        minutes: about.
        engine: in which it is judged; where that is not PyTorch, beside its simulation.
    """

    recipe: str
    epochs: int
    minutes: float
    engine: str = "torch"

    def made(self, seed: int) -> Recipe:
        """The recipe, distilled from the float network's scores where its preset says nothing else."""
        found = RECIPES[self.recipe]()
        (step,) = (s for s in found.steps if isinstance(s, Train))
        distill = {"distill": (LOGITS,)} if step.distill == ("auto",) else {}
        return trained(found, epochs=self.epochs, **distill).model_copy(update={"seed": seed})

    def about(self, seed: int) -> dict[str, Any]:
        """Recipe and engine."""
        return {"kind": "quantized", "recipe": self.made(seed).to_yaml(), "engine": self.engine, "seed": seed}

    def __call__(self, place: Place) -> dict[str, Any]:
        """Train, or go on training, and judge."""
        from cifar_training import task

        own, recipe = task(**place.sizes), self.made(place.seed)
        done = tersor.finetune(
            own, recipe, self.engine, folder=place.folder, epochs=place.epochs(self.epochs), threads=THREADS,
            report=False,
        )
        found = judged(hits(own, done.runner, self.recipe), float_hits(self.engine, place.sizes["judged"]))
        if self.engine != "torch":
            assert done.network is not None
            simulated = 100 * float(hits(own, done.network, "the simulation").mean())
            found |= {"simulated": simulated, "apart": abs(found["top1"] - simulated)}
        return found | told(done)
