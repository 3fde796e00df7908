"""Half of the weights gone from stories260k and MiniLM, anywhere and 2 of every 4: who loses most, who least.

stories260k: the loss on 200 windows of text kept apart, calibrated on 128 of the training text. MiniLM: the squared
distance of the embeddings of STS-B's test sentences from FP32's, calibrated on sentences of the training split.
"""

import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from encoder import Benchmark
from pictures import shared
from torch import Tensor, nn

import tersor
from benchmarks import common
from benchmarks.common import Claim, Outcome, main, say
from benchmarks.llm_accuracy import FLOAT, windows
from benchmarks.tasks.llm import stories
from tersor.recipe import Recipe

PATTERNS = ("50%", "2:4")
PRUNERS = ("magnitude", "wanda", "sparsegpt", "exactobs")


def bench(quick: bool) -> Outcome:
    """Magnitude is to be worst, a second-order pruner best."""
    details: dict[str, Any] = {}
    return Outcome([*_stories(quick, details), *_minilm(quick, details)], details)


def _stories(quick: bool, details: dict[str, Any]) -> list[Claim]:
    claims = []
    with tempfile.TemporaryDirectory(prefix="tersor-bench-") as name:
        folder = Path(name)
        source = stories(folder / "stories")
        calibration = windows(source, "tinystories_train.txt", 4 if quick else 128)
        held = windows(source, "tinystories_valid.txt", 4 if quick else 200)
        for pattern in PATTERNS[: 1 if quick else None]:
            found = {}
            for pruner in PRUNERS:
                say(f"stories260k, {pattern}: {pruner}")
                recipe = Recipe(name=pruner, weights=FLOAT, activations=FLOAT, sparsity=pattern, pruner=pruner)
                out = folder / f"{pattern.replace(':', '-')}-{pruner}"
                report = tersor.compress_folder(source, out, recipe, calibration, evaluate=held, progress=False)
                assert report.compressed is not None
                found[pruner] = report.compressed.nats
            claims.append(_claim(f"stories260k, {pattern}, nats", found, details))
    return claims


def _minilm(quick: bool, details: dict[str, Any]) -> list[Claim]:
    task = common.task("minilm", quick)
    batches = list(islice(task.calibration(), 2 if quick else 8))
    held = list(Benchmark(shared() / "data/minilm-stsb", "test").batches(count=32 if quick else 256))
    before = [_embedded(task.model, b) for b in held]
    claims = []
    for pattern in PATTERNS[: 1 if quick else None]:
        found = {}
        for pruner in PRUNERS[:3]:  # ExactOBS of layers with 1,536 inputs would take half an hour
            say(f"MiniLM, {pattern}: {pruner}")
            done = tersor.prune_iteratively(task.model, batches, pattern, pruner, token_mask=lambda batch: batch[1])
            off = sum(float((_embedded(done.model, b) - a).square().sum()) for a, b in zip(before, held, strict=True))
            found[pruner] = off / sum(float(a.square().sum()) for a in before)
        claims.append(_claim(f"MiniLM, {pattern}, squared error of embeddings", found, details))
    return claims


@torch.no_grad()
def _embedded(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return model(*batch)


def _claim(what: str, found: dict[str, float], details: dict[str, Any]) -> Claim:
    details[what] = found
    worst, best = max(found, key=lambda k: found[k]), min(found, key=lambda k: found[k])
    holds = worst == "magnitude" and best in ("sparsegpt", "exactobs")
    peer = ", ".join(f"{k} {v:.4f}" for k, v in found.items())
    return Claim("llm_sparse", what, float(holds), 1.0, False, "(1: the order holds)", peer=peer)


if __name__ == "__main__":
    main("llm_sparse", bench)
