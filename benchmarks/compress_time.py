"""From a module in memory to a compiled int8 engine: ours and NNCF's, ResNet-50, 128 pictures.

Both include reading the pictures and compiling. Ours: capture, calibration, weights on searched grids, bias
correction of every layer, compilation. NNCF's: `ov.convert_model`, `nncf.quantize` at its default (min-max,
fast bias correction), compilation.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

import tersor
from benchmarks import common, peers
from benchmarks.common import THREADS, Claim, Outcome, over, say
from tersor.engines import engine as find_engine
from tersor.engines.openvino.runner import OpenVINORunner
from tersor.measure.latency import summarize
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.progress import Stages
from tersor.recipe import resolve


def bench(quick: bool) -> Outcome:
    """Seconds of `compress(..., report=False)` over NNCF's, in turns, after one untimed run of each."""
    pictures = 32 if quick else 128
    task = common.task("resnet20", quick) if quick else common.task("resnet50", pictures=pictures)
    parts: dict[str, dict[str, float]] = {}

    def ours() -> None:
        tersor.compress(task, engine="openvino", threads=THREADS, report=False, progress=False)

    def nncf() -> None:
        parts["NNCF"] = nncf_parts(task, pictures)

    parts["ours"] = our_parts(task)
    nncf()
    calls: dict[str, Callable[[], None]] = {"ours": ours, "NNCF": nncf}
    rounds: dict[str, list[list[float]]] = {name: [] for name in calls}
    for turn in range(1 if quick else 3):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            say(f"{task.name}: {name}")
            rounds[name].append([1000 * clocked(calls[name])])
    found = {name: summarize(blocks) for name, blocks in rounds.items()}
    value, spread = over(found, "ours", "NNCF")
    beside = "; ".join(f"{k} {v.median / 1000:.1f} s ({_words(parts[k])})" for k, v in found.items())
    claim = Claim("compress", f"{task.name}, {pictures} pictures", value, 1.0, spread=spread, peer=beside)
    return Outcome([claim], {"seconds": rounds, "parts_s": parts})


def _words(seconds: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:.1f}" for k, v in seconds.items())


def clocked(part: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    part()
    return time.perf_counter() - start


def our_parts(task: tersor.Task) -> dict[str, float]:
    """Seconds of every stage that `compress` goes through, in one run."""
    recipe, module = resolve("int8-static"), find_engine("openvino")
    with Stages(show=False) as stages:
        subject = start(task, recipe, GraphHost(module.policy()), stages)
        for step in recipe.steps:
            subject = step(subject, task, stages)
        with stages.stage("compile", ""):
            module.compile(subject.network, threads=THREADS)
    return stages.seconds


def nncf_parts(task: tersor.Task, pictures: int) -> dict[str, float]:
    """Seconds of conversion, quantization and compilation, with the batch of 1 that ours is compiled for."""
    kept: dict[str, Any] = {}
    one = torch.zeros_like(task.arguments(task.example)[0])

    def convert() -> None:
        kept["float"] = peers.openvino_model(task)

    def quantize() -> None:
        kept["int8"] = peers.nncf_model(task, pictures, model=kept["float"])

    def compile() -> None:
        OpenVINORunner(kept["int8"], THREADS, "f32")(one)

    return {f.__name__: clocked(f) for f in (convert, quantize, compile)}


if __name__ == "__main__":
    common.main("compress_time", bench)
