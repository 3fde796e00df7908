"""A ResNet-8 from random weights, alone and with ResNet-56 as its teacher."""

from dataclasses import dataclass
from typing import Any

import tersor
from benchmarks.common import THREADS
from benchmarks.training.rows import Place, hits, judged, told
from tersor.recipe import Quantization, Quantize, Recipe, Train
from tersor.training.losses import LOSSES

# Of the first ResNets on CIFAR-10 (arXiv 1512.03385), with twice the decay, as papers on distillation take them.
# BF16 halves the time where the CPU computes in it.
SCRATCH: dict[str, Any] = {"optimizer": "sgd", "rate": 0.1, "weight_decay": 5e-4, "precision": "bf16"}
# Those of Transformers read what a ResNet does not have.
FITTING = tuple(name for name in LOSSES if name not in ("hidden-states", "attention-maps"))


@dataclass(frozen=True)
class Distilled:
    """One loss beside cross-entropy; the top-1 is that of the last epoch.

    Args:
        loss: a key of LOSSES, with its default options; ``alone`` is cross-entropy alone.
        epochs: passes over all training pictures.
        minutes: about.
    """

    loss: str
    epochs: int
    minutes: float

    def made(self, seed: int) -> Recipe:
        """Training in float, and nothing else."""
        kept = Quantization(format="fp32")
        distill = () if self.loss == "alone" else (self.loss,)
        train = Train(epochs=self.epochs, distill=distill, **SCRATCH)
        steps = (train, Quantize(weights=kept, activations=kept, bias_correction=False))
        return Recipe(steps=steps, name=f"distill-{self.loss}", seed=seed)

    def about(self, seed: int) -> dict[str, Any]:
        """The recipe."""
        return {"kind": "distilled", "recipe": self.made(seed).to_yaml(), "seed": seed}

    def __call__(self, place: Place) -> dict[str, Any]:
        """Train, or go on training, and judge; what is lost is against the teacher."""
        from cifar_training import student_task, teacher

        own = student_task(seed=place.seed, **place.sizes)
        done = tersor.finetune(
            own, self.made(place.seed), "torch", folder=place.folder, epochs=place.epochs(self.epochs),
            threads=THREADS, report=False,
        )
        return judged(hits(own, done.runner, self.loss), hits(own, teacher(), "the teacher")) | told(done)
