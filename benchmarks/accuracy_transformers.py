"""What static int8 costs Transformers in OpenVINO: MiniLM on STS-B and ViT-Tiny on photographs, as they come."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import tersor
from benchmarks import common, peers
from benchmarks.accuracy import in_float, look, ours, pair
from benchmarks.accuracy_dynamic import few_sentences
from benchmarks.common import THREADS, Claim, Outcome, say
from tersor.engines import engine as find_engine
from tersor.engines.openvino.runner import OpenVINORunner
from tersor.network.capture import capture
from tersor.recipe import int8_static

RECIPES = {
    "int8-static": int8_static(),
    "smooth off": int8_static().model_copy(update={"name": "int8-static, smooth off", "smooth": "off"}),
}
NNCF = {"NNCF": False, "NNCF, model_type=TRANSFORMER": True}


def bench(quick: bool) -> Outcome:
    """Points under FP32 in the same engine; without smoothing and NNCF's beside it. In short MiniLM alone."""
    details: dict[str, Any] = {}
    if quick:
        return Outcome(_sentences(quick, details), details)
    return Outcome([*_sentences(quick, details), *_photographs(details)], details)


def _sentences(quick: bool, details: dict[str, Any]) -> list[Claim]:
    task = few_sentences() if quick else common.task("minilm")
    assert task.evaluate is not None
    before = find_engine("openvino").compile(capture(task.model, task.example), threads=THREADS)
    subjects: dict[str, Callable[[], Any]] = {"FP32": lambda: before}
    for name, recipe in RECIPES.items():
        subjects[name] = lambda r=recipe: tersor.compress(task, r, threads=THREADS, report=False, progress=False).runner
    for name, told in NNCF.items():
        subjects[name] = lambda told=told: _nncf(task, told, quick)
    found = details["MiniLM"] = {}
    for name, subject in subjects.items():
        say(f"{task.name}: {name}")
        found[name] = task.evaluate(subject())
    beside = ", ".join(f"{k} {v:.2f}" for k, v in found.items())
    return _claims("static_sts", "MiniLM", {k: found["FP32"] - found[k] for k in RECIPES}, {}, beside)


def _photographs(details: dict[str, Any]) -> list[Claim]:
    task = common.task("vit_tiny")
    before = in_float(task, "openvino")
    found = {name: ours(task, "openvino", before, recipe, simulate=False) for name, recipe in RECIPES.items()}
    others = {}
    for name, told in NNCF.items():
        say(f"{task.name}: {name}")
        others[name] = pair(before, look(task, _nncf(task, told, quick=False), name))
    details["ViT-Tiny"] = {name: asdict(p) for name, p in (found | others).items()}
    beside = ", ".join([f"FP32 {before.points:.2f}", *(f"{k} {v.top1:.2f}" for k, v in (found | others).items())])
    drops, intervals = ({k: getattr(p, f) for k, p in found.items()} for f in ("drop", "interval"))
    return _claims("static_vit", "ViT-Tiny", drops, intervals, beside)


def _nncf(task: tersor.Task, told: bool, quick: bool) -> Callable[..., Tensor]:
    """Of as many samples as ours; asked one by one, since OpenVINO's converter fixes ViT's batch."""
    runner = OpenVINORunner(peers.nncf_transformer(task, 4 if quick else 256, told), THREADS, "f32")

    def predict(*inputs: Tensor) -> Tensor:
        return torch.cat([runner(*one) for one in zip(*(x.split(1) for x in inputs), strict=True)])

    return predict


def _claims(line: str, title: str, lost: dict[str, float], intervals: dict[str, Any], beside: str) -> list[Claim]:
    reach = {"int8-static": (0.5, beside)}
    return [
        Claim(line, f"{title}, {name}", value, bound, unit="points", spread=intervals.get(name), peer=peer)
        for name, value in lost.items()
        for bound, peer in [reach.get(name, (None, ""))]
    ]


if __name__ == "__main__":
    common.main("accuracy_transformers", bench)
