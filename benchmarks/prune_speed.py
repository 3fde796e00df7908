"""Targets in latency: ResNet-56 and MiniLM in OpenVINO int8, 1.5 times as fast as their own dense int8, no training.

Both networks are made by the same recipe but for the step `prune`, and timed interleaved on one thread; what is judged
is the compiled network. The distance of engine and simulation stands beside that of the dense network.
"""

from dataclasses import asdict, replace
from typing import Any

from benchmarks import common
from benchmarks.common import Claim, Outcome, say
from benchmarks.training.rows import wilson
from tersor import Task
from tersor.pipeline.graph.compress import compress
from tersor.pipeline.graph.measuring import single
from tersor.recipe import Prune, Quantize, Recipe

FASTER, TOP1, SPEARMAN = 1.5, 90.5, 1.5
SENTENCES = 1200  # a layer of 1,536 inputs is not repaired from the 3,000 tokens of 256 sentences
STEPS: dict[str, dict[str, Any]] = {
    "resnet56": {"structure": ["channels", "branches"]},
    "minilm": {"structure": ["channels", "branches"], "samples": SENTENCES},
}


def bench(quick: bool) -> Outcome:
    """The measured speed, and what is left of the metric."""
    claims, details = [], dict[str, Any]()
    for name in ["resnet56"] if quick else STEPS:
        task = _with_sentences(common.task(name, quick)) if name == "minilm" else common.task(name, quick)
        step = Prune(target=f"{FASTER}x", **STEPS[name] | ({"samples": 32, "rounds": 1} if quick else {}))
        made = {}
        for kind, steps in (("dense", ()), ("pruned", (step,))):
            say(f"{name}: {kind}")
            recipe = Recipe(name=kind, steps=(*steps, Quantize()))
            made[kind] = compress(task, recipe, "openvino", threads=1, report=False, progress=False)
        inputs = single(made["dense"].network)
        times = common.timed({kind: (lambda r=done.runner, x=inputs: r(*x)) for kind, done in made.items()}, quick)
        faster, spread = common.over(times, "dense", "pruned")
        record = made["pruned"].prunings[0]
        details[name] = {"milliseconds": common.milliseconds(times), "pruned": asdict(record)}
        details[name]["pruned"].pop("kept")
        claims.append(
            Claim("prune_speed", f"{name}, int8 over its dense int8", faster, FASTER, at_most=False, spread=spread)
        )
        if not quick:
            claims.append(_judged(name, task, made, details[name]))
    return Outcome(claims, details)


def _with_sentences(task: Task) -> Task:
    """MiniLM's task with more of the training sentences, and told which of their tokens are real."""
    from encoder import Benchmark
    from pictures import shared

    train = Benchmark(shared() / "data/minilm-stsb", "train")
    return replace(task, calibration=lambda: train.batches(count=SENTENCES), token_mask=lambda ids, mask: mask)


def _judged(name: str, task: Any, made: dict[str, Any], details: dict[str, Any]) -> Claim:
    """What the pruned network is worth."""
    scores = {kind: task.evaluate(done) for kind, done in made.items()}
    if name == "resnet56":
        found = {kind: 100 * float(hits.double().mean()) for kind, hits in scores.items()}
        low, high = wilson(float(scores["pruned"].sum()), scores["pruned"].numel())
        details["top1"] = found
        peer = f"{low:.2f}…{high:.2f}; dense {found['dense']:.2f}"
        return Claim("prune_speed", "ResNet-56, 1.5x, top-1", found["pruned"], TOP1, at_most=False, unit="%", peer=peer)
    lost = float(scores["dense"]) - float(scores["pruned"])
    details["spearman"] = {kind: float(score) for kind, score in scores.items()}
    return Claim("prune_speed", "MiniLM, 1.5x, Spearman lost", lost, SPEARMAN, unit="points")


if __name__ == "__main__":
    common.main("prune_speed", bench)
