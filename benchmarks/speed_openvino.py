"""Latency in OpenVINO: ours, NNCF's int8, FP32 (pinned), BF16 and eager PyTorch, interleaved."""

from typing import Any

import torch

import tersor
from benchmarks import common, peers
from benchmarks.common import THREADS, Claim, Outcome, milliseconds, over, say, timed
from tersor.engines.openvino.runner import OpenVINORunner

NETS = (("mobilenetv2", "MobileNetV2", 1.8), ("resnet50", "ResNet-50", 4.0))


def bench(quick: bool) -> Outcome:
    """Batch 1, 2 threads; every subject is called through the same runner."""
    claims: list[Claim] = []
    details: dict[str, Any] = {}
    for name, title, faster in NETS[: 1 if quick else 2]:
        task = common.task(name, quick)
        found = timed(calls(task, quick), quick)
        ratio, spread = over(found, "ours", "NNCF int8")
        claims.append(
            Claim(
                "over_nncf",
                title,
                ratio,
                1.05,
                spread=spread,
                peer=f"NNCF {found['NNCF int8'].median:.2f} ms",
            )
        )
        ratio, spread = over(found, "FP32", "ours")
        beside = ", ".join(f"{k} {found[k].median:.2f} ms" for k in ("ours", "FP32", "BF16", "eager PyTorch"))
        claims.append(Claim("over_fp32", title, ratio, faster, False, "times faster", spread, beside))
        details[title] = milliseconds(found)
    return Outcome(claims, details)


def calls(task: tersor.Task, quick: bool) -> dict[str, Any]:
    """What is timed, on one and the same picture."""
    say(f"{task.name}: compressing")
    done = tersor.compress(task, engine="openvino", threads=THREADS, report=False, progress=False)
    say(f"{task.name}: peers")
    plain = peers.openvino_model(task)
    runners = {
        "ours": done.runner,
        "NNCF int8": peers.nncf_runner(task, 8 if quick else 128),
        "FP32": OpenVINORunner(plain, THREADS, "f32"),
        "BF16": OpenVINORunner(plain, THREADS, "bf16"),
    }
    picture = next(iter(task.calibration_batches()))[0][:1].clone()

    def eager() -> None:
        with torch.no_grad():
            task.model(picture)

    return {name: (lambda r=runner: r(picture)) for name, runner in runners.items()} | {
        "eager PyTorch": eager
    }


if __name__ == "__main__":
    common.main("speed_openvino", bench)
