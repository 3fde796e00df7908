"""Latency in ONNX Runtime: ours, its own `quantize_static` at its best setting, FP32, interleaved."""

import tempfile
from pathlib import Path
from typing import Any

import onnx

import tersor
from benchmarks import common, peers
from benchmarks.common import THREADS, Claim, Outcome, milliseconds, over, say, timed
from tersor.engines.onnxruntime.runner import OnnxRuntimeRunner

NETS = (("mobilenetv2", "MobileNetV2"), ("resnet50", "ResNet-50"))


def bench(quick: bool) -> Outcome:
    """Batch 1, 2 threads; every subject is called through the same runner."""
    claims: list[Claim] = []
    details: dict[str, Any] = {}
    for name, title in NETS[: 1 if quick else 2]:
        task = common.task(name, quick)
        found = timed(calls(task, quick), quick)
        ratio, spread = over(found, "ours", "quantize_static")
        beside = ", ".join(f"{k} {v.median:.2f} ms" for k, v in found.items())
        claims.append(Claim("over_ort", title, ratio, 1.0, spread=spread, peer=beside))
        details[title] = milliseconds(found)
    return Outcome(claims, details)


def calls(task: tersor.Task, quick: bool) -> dict[str, Any]:
    """What is timed, on one and the same picture; theirs calibrates on 32, which changes no speed."""
    say(f"{task.name}: compressing")
    done = tersor.compress(task, engine="onnxruntime", threads=THREADS, report=False, progress=False)
    say(f"{task.name}: peers")
    with tempfile.TemporaryDirectory() as folder:
        peers.onnx_file(task, Path(folder) / "plain.onnx")
        plain = OnnxRuntimeRunner(onnx.load(Path(folder) / "plain.onnx"), THREADS)
    runners = {
        "ours": done.runner,
        "quantize_static": peers.ort_runner(task, 8 if quick else 32),
        "FP32": plain,
    }
    picture = next(iter(task.calibration_batches()))[0][:1].clone()
    return {name: (lambda r=runner: r(picture)) for name, runner in runners.items()}


if __name__ == "__main__":
    common.main("speed_onnxruntime", bench)
