"""ResNet-56 pruned, trained back by its dense self, and quantized: judged in OpenVINO int8 and in simulation."""

from dataclasses import dataclass, replace
from typing import Any

import tersor
from benchmarks import common
from benchmarks.accuracy import in_float
from benchmarks.training.quantized import LOGITS
from benchmarks.training.rows import Place, hits, judged, told
from tersor.pipeline.graph.compress import compress
from tersor.pipeline.graph.measuring import single
from tersor.recipe import Prune, Quantize, Recipe, Train

ENGINE = "openvino"
TARGETS: dict[str, dict[str, Any]] = {
    "halved": {"target": "2x macs"},
    "two-fifths": {"target": "2.5x macs"},
    "faster": {"target": "1.5x latency", "structure": ["channels", "branches"]},
}


@dataclass(frozen=True)
class Pruned:
    """One target; the top-1 is that of the int8 network after the last epoch.

    Args:
        kind: a key of TARGETS.
        epochs: passes over all training pictures.
        minutes: about.
    """

    kind: str
    epochs: int
    minutes: float

    def made(self, seed: int, quick: bool = False) -> Recipe:
        """The recipe."""
        few: dict[str, Any] = {"samples": 32, "rounds": 1} if quick else {}
        train = Train(epochs=self.epochs, optimizer="sgd", rate=0.02, weight_decay=1e-4, distill=(LOGITS,))
        steps = (Prune(**TARGETS[self.kind] | few), train, Quantize())
        return Recipe(steps=steps, name=f"pruned-{self.kind}", seed=seed)

    def about(self, seed: int) -> dict[str, Any]:
        """Recipe and engine."""
        return {"kind": "pruned", "recipe": self.made(seed).to_yaml(), "engine": ENGINE, "seed": seed}

    def __call__(self, place: Place) -> dict[str, Any]:
        """Prune, train, quantize, judge, and time beside the dense int8 network."""
        from cifar_training import task, teacher

        own = replace(task(**place.sizes), name="resnet56-cifar10", model=teacher())
        done = tersor.finetune(
            own, self.made(place.seed, place.quick), ENGINE, folder=place.folder, epochs=place.epochs(self.epochs),
            threads=1, report=False,
        )
        before = in_float(own, ENGINE).judged.scores
        assert before is not None
        assert done.network is not None
        found = judged(hits(own, done.runner, self.kind), before.float())
        simulated = 100 * float(hits(own, done.network, "the simulation").mean())
        dense = compress(own, Recipe(name="dense"), ENGINE, threads=1, report=False, progress=False)
        inputs = single(dense.network)
        calls = {name: (lambda r=c.runner: r(*inputs)) for name, c in {"dense": dense, "pruned": done}.items()}
        times = common.timed(calls, place.quick)
        faster, spread = common.over(times, "dense", "pruned")
        (record,) = done.prunings
        return found | told(done) | {
            "simulated": simulated, "apart": abs(found["top1"] - simulated), "faster": faster, "spread": spread,
            "macs": record.macs, "promised": record.faster, "branches": record.branches,
        }  # fmt: skip
