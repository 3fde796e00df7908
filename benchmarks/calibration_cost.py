"""What calibration costs: all estimators at once over bare forward passes, one KL threshold, peak memory."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import cifar10, photograph_batches, symmetric, usual

import tersor
from benchmarks import common
from benchmarks.common import Claim, Outcome, milliseconds, over, quiet, say
from tersor.engines import engine as find_engine
from tersor.measure import interleave
from tersor.network.calibrate import calibrate
from tersor.network.chunks import channels_last
from tersor.network.network import walk
from tersor.observers import OBSERVERS, KullbackLeibler, Statistics, observe
from tersor.observers.kl import kl_threshold
from tersor.pipeline.graph.prepare import Prepared, prepare
from tersor.recipe import resolve

NETS = (("resnet20", "ResNet-20"), ("mobilenetv2", "MobileNetV2"))
BINS = 2048


def bench(quick: bool) -> Outcome:
    """Time and memory of calibration; what the declared subsampling does to the thresholds."""
    claims: list[Claim] = []
    details: dict[str, Any] = {}
    for name, title in NETS[: 1 if quick else 2]:
        task = common.task(name, quick)
        ready = prepare(task, resolve("int8-static"), find_engine("openvino").policy())
        batches = list(task.calibration_batches())  # decoded beforehand: it would hide the cost
        say(f"{title}: cost of a pass")
        claims += _cost(title, ready, batches, quick, details)
        say(f"{title}: thresholds")
        claims.append(_subsampling(title, ready, batches, details))
        say(f"{title}: peak memory")
        claims.append(_memory(name, title, (64, 128) if quick else (64, 1024)))
    claims.append(_kl(quick))
    return Outcome(claims, details)


def _cost(
    title: str, ready: Prepared, batches: list[Any], quick: bool, details: dict[str, Any]
) -> list[Claim]:
    """Passes over the same batches: bare, observed, and observed with every estimator asked at every site."""
    network, plan = ready.network, ready.plan
    sites = {s.group: s for s in plan.activations() if s.source}

    def bare() -> None:
        for inputs in batches:
            network(*inputs)

    def asked() -> None:
        found = calibrate(network, plan.sources(), batches)
        for group, site in sites.items():
            statistics = found.of_group(plan, group)
            for observer in OBSERVERS.values():
                observer.range(statistics, site.spec)

    calls = {"bare": bare, "observed": lambda: calibrate(network, plan.sources(), batches), "asked": asked}
    found = interleave(calls, rounds=1 if quick else 7, warmup=1, min_time=0.0, settle=0.0)
    pictures = sum(len(b[0]) for b in batches)
    details[title] = milliseconds(found) | {"pictures": pictures, "sites": len(sites)}
    claims = []
    for name, what in (("observed", "the pass that feeds all"), ("asked", "and all their thresholds")):
        value, spread = over(found, name, "bare")
        beside = f"bare {found['bare'].median:.0f} ms"
        claims.append(
            Claim(
                "calibration", f"{title}, {pictures} pictures, {what}", value, 1.5, spread=spread, peer=beside
            )
        )
    return claims


def _subsampling(title: str, ready: Prepared, batches: list[Any], details: dict[str, Any]) -> Claim:
    """The largest relative difference of a threshold from the one with every value counted."""
    wanted = {s.node: s for s in ready.plan.activations() if s.source}
    counted: dict[str, Statistics | None] = {}

    def visit(node: Any, value: torch.Tensor) -> None:
        if node.name in wanted:
            counted[node.name] = observe(counted.get(node.name), value, per_row=2**40)

    # In the layout that calibration computes in, where the same sums are rounded in the same order.
    laid_out = channels_last(ready.network)
    for inputs in batches:
        walk(ready.network, inputs, visit, tensors=laid_out)
    sampled = calibrate(ready.network, ready.plan.sources(), batches).statistics
    apart: dict[str, float] = dict.fromkeys(OBSERVERS, 0.0)
    for node, whole in counted.items():
        assert whole is not None
        for name, observer in OBSERVERS.items():
            spec = wanted[node].spec
            one, two = (np.array([float(r) for r in observer.range(s, spec)]) for s in (whole, sampled[node]))
            apart[name] = max(apart[name], float(np.abs(one - two).max() / np.abs(one).max()))
    details[f"{title}, thresholds apart"] = apart
    return Claim(
        "subsampling", f"{title}, worst of all sites and estimators", 100 * max(apart.values()), 1.0, unit="%"
    )


def _kl(quick: bool) -> Claim:
    """One threshold from a half-Gaussian's 2048 bins; ONNX Runtime's function on the same bins."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, HistogramCollector

    values = np.abs(np.random.default_rng(0).standard_normal(1_000_000)).astype(np.float32)
    counts, edges = np.histogram(values, BINS, (0.0, float(values.max())))
    statistics = observe(None, torch.from_numpy(values).reshape(1, 1, -1))
    assert statistics is not None
    spec = tersor.QuantSpec("uint8", symmetric=False)
    theirs = HistogramCollector(CalibrationMethod.Entropy, True, BINS, 128, 99.99, "same")
    mirrored = np.concatenate([counts[::-1], counts])  # theirs is of signed values, about 0
    both = (
        mirrored,
        np.concatenate([-edges[:0:-1], edges]),
        -float(edges[-1]),
        float(edges[-1]),
        float(edges[-1]),
    )

    def onnxruntime() -> None:
        with quiet():
            theirs.get_entropy_threshold(both, 128)

    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: kl_threshold(counts, float(edges[1])),
        "observer": lambda: KullbackLeibler().range(statistics, spec),
        "ONNX Runtime": onnxruntime,
    }
    found = interleave(calls, rounds=2 if quick else 11, warmup=1, min_time=0.0)
    ours, slow = found["ours"], found["ONNX Runtime"].median
    beside = f"from Statistics {found['observer'].median:.2f} ms, ONNX Runtime {slow:.0f} ms"
    return Claim("kl", f"{BINS} bins", ours.median, 5.0, unit="ms", spread=(ours.p10, ours.p90), peer=beside)


def _memory(name: str, title: str, counts: tuple[int, int]) -> Claim:
    """Peak memory of fresh processes; more over fewer pictures, in percent."""
    few, many = (_peak(name, n) for n in counts)
    beside = f"{few / 2**20:.0f} and {many / 2**20:.0f} MiB"
    return Claim(
        "memory",
        f"{title}, {counts[0]} and {counts[1]} pictures",
        100 * (many / few - 1),
        5.0,
        unit="%",
        peer=beside,
    )


def _peak(name: str, pictures: int) -> int:
    command = [sys.executable, "-m", "benchmarks.calibration_cost", "--peak", name, str(pictures)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return int(done.stdout.split()[-1])


def calibrate_once(name: str, pictures: int) -> int:
    """Calibrate on that many pictures in this process; its peak of resident bytes, or 0 where it is not told.

    Read from /proc, because what getrusage tells is inherited from the process that started this one.
    """
    task = common.task(name)
    ready = prepare(task, resolve("int8-static"), find_engine("openvino").policy())
    calibrate(ready.network, ready.plan.sources(), _stream(name, pictures))
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def _stream(name: str, pictures: int) -> Iterable[tuple[torch.Tensor]]:
    if name.startswith("resnet"):
        return ((usual(x.float()),) for x in cifar10("train0")[0][:pictures].split(64))
    return photograph_batches(list(islice(cycle(range(1000)), pictures)), symmetric)


if __name__ == "__main__":
    if "--peak" in sys.argv:
        torch.set_num_threads(common.THREADS)
        print(calibrate_once(sys.argv[-2], int(sys.argv[-1])))
    else:
        common.main("calibration_cost", bench)
