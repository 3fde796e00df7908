"""MobileNetV2 and SqueezeNet on photographs, five calibration draws; NNCF at its default and its best."""

from dataclasses import asdict, replace
from statistics import mean

from pictures import Transform, reported_photographs, symmetric, top1, usual

import tersor
from benchmarks import common, peers
from benchmarks.accuracy import Pair, Seen, in_float, look, ours, pair, simulation_claims
from benchmarks.common import Claim, Outcome, say

DRAWS = range(5)
ENGINES = ("openvino", "onnxruntime")
NETS = (("mobilenetv2", "MobileNetV2", symmetric, 0.8), ("squeezenet", "SqueezeNet", usual, 1.0))


def photographs(name: str, transform: Transform, draw: int, quick: bool) -> tersor.Task:
    """The task at one calibration draw; in short only 100 photographs judge."""
    task = common.task(name, quick, draw=draw)
    if not quick:
        return task
    pixels, labels = reported_photographs()
    return replace(task, evaluate=lambda predict: top1(predict, pixels[:100], labels[:100], transform))


def bench(quick: bool) -> Outcome:
    """Top-1 lost and predictions kept on 744 photographs, mean of five calibration draws."""
    claims, details = [], {}
    for name, title, transform, reach in NETS:
        tasks = [photographs(name, transform, k, quick) for k in (DRAWS[:1] if quick else DRAWS)]
        before = {engine: in_float(tasks[0], engine) for engine in ENGINES}
        beside = {} if quick else nncf(tasks, before["openvino"])
        said = "; ".join(
            f"{k} {mean(p.drop for p in v):.2f}, agree {_agree(v):.1f} %" for k, v in beside.items()
        )
        for engine in ENGINES:
            found = [ours(task, engine, before[engine]) for task in tasks]
            claims += _claims(name, f"{title}, {engine}", found, reach, said if engine == "openvino" else "")
            details[f"{title}, {engine}"] = [asdict(p) for p in found]
        details[f"{title}, NNCF"] = {k: [asdict(p) for p in v] for k, v in beside.items()}
    return Outcome(claims, details)


def nncf(tasks: list[tersor.Task], before: Seen) -> dict[str, list[Pair]]:
    """NNCF on the same draws."""
    found: dict[str, list[Pair]] = {}
    for setting, best in (("NNCF default", False), ("NNCF mixed, accurate bias correction", True)):
        for task in tasks:
            say(f"{task.name}: {setting}")
            found.setdefault(setting, []).append(
                pair(before, look(task, peers.nncf_runner(task, 300, best), setting))
            )
    return found


def _claims(line: str, what: str, found: list[Pair], reach: float, beside: str) -> list[Claim]:
    drops = [p.drop for p in found]
    claims = [
        Claim(
            line,
            f"{what}, top-1 lost",
            mean(drops),
            reach,
            unit="points",
            spread=(min(drops), max(drops)),
            peer=beside,
        ),
        Claim(
            line, f"{what}, agree with FP32", _agree(found), 93 if line == "mobilenetv2" else None, False, "%"
        ),
    ]
    for k, p in enumerate(found):
        claims += simulation_claims(f"{what}, draw {k}", p)
    return claims


def _agree(found: list[Pair]) -> float:
    return mean(p.agreement for p in found)


if __name__ == "__main__":
    common.main("accuracy_imagenet", bench)
