"""How far 4 and 3 bits move MiniLM's embeddings from FP32's: GPTQ's squared error as a share of rounding's.

Calibrated on 256 sentences of STS-B's training split, judged on the embeddings of 256 of the test split. Spearman's
correlation is no measure here: rounding to 4 bits happens to raise it.
"""

from typing import Any

import torch
from encoder import Benchmark
from pictures import shared
from torch import Tensor

import tersor
from benchmarks import common
from benchmarks.common import Claim, Outcome, main, say
from benchmarks.llm_accuracy import FLOAT
from tersor.recipe import Quantization, Recipe

SETTINGS = [("int4", "channel"), ("int4", "group:32"), ("int3", "channel"), ("int3", "group:32")]


def bench(quick: bool) -> Outcome:
    """GPTQ over rounding to nearest, at 4 and 3 bits, per channel and in groups of 32."""
    details: dict[str, Any] = {}
    task = common.task("minilm", quick)
    # Padded positions count for nothing.
    task = tersor.Task(
        task.name, task.model, task.example, task.calibration, token_mask=lambda ids, mask: mask
    )  # fmt: skip
    held = list(Benchmark(shared() / "data/minilm-stsb", "test").batches(count=32 if quick else 256))
    with torch.no_grad():
        before = [task.model(*batch) for batch in held]
    claims = []
    for bits, granularity in SETTINGS[: 1 if quick else None]:
        found = {}
        for name, kinds in {"rtn": {"range": "minmax"}, "gptq": {"range": "mse", "solver": "gptq"}}.items():
            say(f"MiniLM, {bits} {granularity}: {name}")
            weights = Quantization(format=bits, granularity=granularity, **kinds)  # type: ignore[arg-type]
            recipe = Recipe(name=name, weights=weights, activations=FLOAT, bias_correction=False)
            done = tersor.compress(task, recipe, "torch", report=False, progress=False)
            found[name] = sum(_squared(done(*batch), a) for batch, a in zip(held, before, strict=True))
        what = f"MiniLM, {bits} {granularity}"
        details[what] = found
        claims.append(Claim("llm_embeddings", what, found["gptq"] / found["rtn"], 0.5, unit="of RTN's"))
    return Outcome(claims, details)


def _squared(found: Any, expected: Tensor) -> float:
    return float((found - expected).square().sum(dtype=torch.float64))


if __name__ == "__main__":
    main("gptq_minilm", bench)
