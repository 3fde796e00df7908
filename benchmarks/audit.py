"""What the engines really compute in, and how many bytes have to be shipped."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import tersor
from benchmarks import common, peers
from benchmarks.common import THREADS, Claim, Outcome, say
from tersor.engines import engine as find_engine
from tersor.engines.base import Runner
from tersor.measure import shipped_bytes
from tersor.network.capture import capture
from tersor.pipeline.graph.audit import Audited, audit

NETS = (("resnet20", "ResNet-20", None), ("mobilenetv2", "MobileNetV2", 3.6), ("resnet50", "ResNet-50", 3.9))
ENGINES = ("openvino", "onnxruntime")


def bench(quick: bool) -> Outcome:
    """Convolutions and residual additions that fell back; bytes before over after, every file counted."""
    claims: list[Claim] = []
    details: dict[str, Any] = {}
    for name, title, smaller in NETS[: 1 if quick else 3]:
        task = common.task(name, quick)
        for engine in ENGINES:
            what = f"{title}, {engine}"
            say(what)
            done = tersor.compress(task, engine=engine, threads=THREADS, report=False, progress=False)
            assert done.plan is not None
            rows = audit(done.plan, done.runner.executed())
            claims += _audit_claims(what, rows, done.runner)
            claims += _step_claims(what, task, done)
            if name == "mobilenetv2":
                share = _agreement(task, done)
                claims.append(Claim("simulation_mobilenetv2", engine, share, 0.99, at_most=False))
            before, after = float_bytes(task, engine), saved_bytes(done)
            beside = "" if quick or engine != "openvino" or smaller is None else _nncf(task, before)
            claims.append(Claim("size", what, before / after, smaller, False, "times smaller", peer=beside))
            details[what] = {
                "bytes": [before, after],
                "operators": _operators(done.runner),
                "float": _in_float(rows),
            }
    return Outcome(claims, details)


def _audit_claims(what: str, rows: list[Audited], runner: Runner) -> list[Claim]:
    """By our audit, layer for layer, and by the engine's own list, where no float convolution may be left."""
    convolutions = [r for r in rows if r.layer.op.startswith("conv")]
    additions = [r for r in rows if r.layer.op in ("add", "add_")]
    own = [e for e in runner.executed() if "conv" in e.op.lower() and e.precision != "int8"]
    return [
        Claim("audit", f"{what}, of {len(convolutions)} convolutions in float", _floats(convolutions), 0),
        Claim("audit", f"{what}, of {len(additions)} additions in float", _floats(additions), 0),
        Claim("audit", f"{what}, float convolutions by the engine's own list", len(own), 0),
    ]


def _step_claims(what: str, task: tersor.Task, done: tersor.Compressed) -> list[Claim]:
    """The one-step check on four calibration samples."""
    engine = find_engine(done.engine)
    inputs = tuple(x for x in next(iter(task.calibration_batches())) if isinstance(x, torch.Tensor))
    steps = engine.audit(done.network, done.runner, inputs).steps
    other = [s for s in steps if s.verdict in ("float", "other")]
    missing = sum(s.verdict == "unchecked" for s in steps)
    beside = f"largest {max((s.largest for s in steps), default=0.0):.2f} codes; {missing} unchecked"
    claim = f"{what}, of {len(steps)} values beyond {engine.tolerance:g} code of the simulation"
    return [Claim("one_step", claim, len(other), 0, peer=beside)]


def _agreement(task: tersor.Task, done: tersor.Compressed) -> float:
    """The share of the test pictures for which engine and simulation predict the same class."""
    same: list[torch.Tensor] = []

    def predict(*inputs: torch.Tensor) -> torch.Tensor:
        found = done(*inputs)
        same.append(found.argmax(1) == done.network(*inputs).argmax(1))
        return found

    assert task.evaluate is not None
    task.evaluate(predict)
    return float(torch.cat(same).double().mean())


def _floats(rows: list[Audited]) -> int:
    return sum(r.executed != "int8" for r in rows)


def _in_float(rows: list[Audited]) -> dict[str, str]:
    return {
        r.layer.name: f"{r.executed}: {r.note or r.layer.reason}"
        for r in rows
        if r.executed not in ("int8", "fused")
    }


def _operators(runner: Runner) -> dict[str, int]:
    return dict(Counter(f"{e.op} {e.precision}" for e in runner.executed()))


def float_bytes(task: tersor.Task, engine: str) -> int:
    """The float network in the files of the same engine."""
    runner = find_engine(engine).compile(capture(task.model, task.example), threads=THREADS)
    with tempfile.TemporaryDirectory() as folder:
        runner.save(Path(folder))
        return shipped_bytes(folder)


def saved_bytes(done: tersor.Compressed) -> int:
    """The whole saved folder: model, manifest, recipe."""
    with tempfile.TemporaryDirectory() as folder:
        return shipped_bytes(done.save(Path(folder) / "saved"))


def _nncf(task: tersor.Task, before: int) -> str:
    """Both of NNCF's files over the same float bytes; on few pictures, which changes no size."""
    import openvino as ov

    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(peers.nncf_model(task, 8), Path(folder) / "model.xml")
        return f"NNCF {before / shipped_bytes(folder):.2f}"


if __name__ == "__main__":
    common.main("audit", bench)
