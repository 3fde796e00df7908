"""ResNet-56 made narrower by the step `prune`, without training, on 512 training pictures; magnitude's cut beside it.

Judged in float on all 10,000 test pictures. DepGraph's own log is at 28.1 % straight after its cut to 1/2.1.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.common import Claim, Outcome, say
from benchmarks.training.rows import wilson
from tersor.engines import engine
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Prune, Recipe

REACH = {2.0: 89.0, 2.5: 85.0}
METHODS: dict[str, dict[str, Any]] = {
    "obs, ridge": {}, "obs, cut alone": {"repair": "none", "rounds": 1},
    "magnitude, cut alone": {"score": "magnitude", "repair": "none"},
}  # fmt: skip


def bench(quick: bool) -> Outcome:
    """Top-1 at a half and at 1/2.5 of the multiply-accumulates."""
    task = common.task("resnet56")
    dense = start(task, Recipe(), GraphHost(engine("torch").policy()), Stages(False))
    before = judged(task, dense, quick)
    claims, details = [], dict[str, Any]({"float": before})
    for times in [2.0] if quick else list(REACH):
        found = {}
        for name, options in METHODS.items():
            say(f"ResNet-56, multiply-accumulates / {times}: {name}")
            samples = 32 if quick else 512
            step = Prune(target=f"{times}x macs", samples=samples, **({"rounds": 1} if quick else {}) | options)
            small = step(dense, task, Stages(False))
            found[name] = judged(task, small, quick)
            details[f"{times}, {name}"] = {"top1": found[name], "pruned": asdict(small.prunings[0])}
        own, low, high = found["obs, ridge"]
        beside = ", ".join(f"{name} {value[0]:.2f}" for name, value in found.items() if name != "obs, ridge")
        peer = f"{low:.2f}…{high:.2f}; here {beside}; dense {before[0]:.2f}"
        what = f"ResNet-56, MACs / {times}, untrained"
        claims.append(Claim("prune_channels", what, own, REACH[times], at_most=False, unit="%", peer=peer))
    return Outcome(claims, details)


def judged(task: Any, subject: Subject, quick: bool) -> tuple[float, float, float]:
    """Top-1 in percent with its interval."""
    assert subject.network is not None
    if quick:
        (x,) = next(iter(task.calibration()))
        return 100 * float(torch.isfinite(subject.network(x)).all()), 0.0, 100.0
    hits: Tensor = task.evaluate(subject.network)
    share = hits.double().mean()
    return 100 * float(share), *wilson(float(hits.sum()), hits.numel())


if __name__ == "__main__":
    common.main("prune_channels", bench)
