"""What a training costs, whether it survives being killed, and whether two processes are one."""

import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import tersor
from benchmarks.common import milliseconds, over, timed
from benchmarks.training.rows import Place, judged, unpacked

SHORT = "benchmarks.training.short"


@dataclass(frozen=True)
class StepCost:
    """A step of W4A4 over one of FP32: forward, backward and AdamW, 128 pictures, cross-entropy, interleaved."""

    minutes: float

    def about(self, seed: int) -> dict[str, Any]:
        """Nothing but the code."""
        return {"kind": "step cost"}

    def __call__(self, place: Place) -> dict[str, Any]:
        """The ratio of the medians."""
        from cifar_training import task
        from training_pictures import Epoch

        own = task(**place.sizes)
        student = tersor.trainable(own, "int4-qat", "torch", progress=False)
        batches = cycle(list(Epoch(512)))
        found = timed(
            {"FP32": _steps(own.model.train(), batches), "W4A4": _steps(student.train(), batches)}, place.quick
        )
        ratio, spread = over(found, "W4A4", "FP32")
        return {"ratio": ratio, "spread": spread, "milliseconds": milliseconds(found)}


def _steps(network: nn.Module, batches: Any) -> Any:
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> None:
        x, y = next(batches)
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


@dataclass(frozen=True)
class Kills:
    """Kills of a W4A4 training at random moments, each followed by a resume: the same bits as without.

    Args:
        kills: how many.
        epochs, pictures: of each training.
    """

    kills: int
    epochs: int
    pictures: int
    minutes: float

    def about(self, seed: int) -> dict[str, Any]:
        """How many, of how much."""
        return {"kind": "kills", **asdict(self), "seed": seed}

    def __call__(self, place: Place) -> dict[str, Any]:
        """How many were equal, and how many epochs were done when each was killed."""
        draw, found = random.Random(place.seed), []
        kills, epochs, pictures = (1, 2, 256) if place.quick else (self.kills, self.epochs, self.pictures)
        with tempfile.TemporaryDirectory(prefix="tersor-bench-") as folder:
            base = Path(folder)
            start = time.perf_counter()
            whole = _ran(base / "whole", epochs, pictures)
            seconds = time.perf_counter() - start
            for k in range(kills):
                own = base / str(k)
                done = _killed(own, epochs, pictures, draw.uniform(0.3, 0.95) * seconds)
                found.append({"epochs_done": done, "equal": _ran(own, epochs, pictures) == whole})
        return {"equal": sum(f["equal"] for f in found), "kills": found}


def _command(folder: Path, epochs: int, pictures: int, batch: int = 128, judged: int = 200) -> list[str]:
    numbers = {"epochs": epochs, "pictures": pictures, "batch": batch, "judged": judged}
    given = [str(w) for name, value in numbers.items() for w in (f"--{name}", value)]
    return [SHORT, *given, "--folder", str(folder), "--out", str(folder.with_suffix(".out"))]


def _ran(folder: Path, epochs: int, pictures: int) -> str:
    """The digest of what a run, or its continuation, became."""
    _checked([sys.executable, "-m", *_command(folder, epochs, pictures)])
    return json.loads(folder.with_suffix(".0.json").read_text(encoding="utf8"))["digest"]


def _killed(folder: Path, epochs: int, pictures: int, seconds: float) -> int:
    """Kill a run after that time, earlier where it was ready by then; returns the number of saved epochs."""
    while True:
        command = [sys.executable, "-m", *_command(folder, epochs, pictures)]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            code = running.wait(seconds)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
            return _epochs_in(folder)
        if code:
            raise RuntimeError(f"{' '.join(command)} failed with {code}")
        shutil.rmtree(folder)
        seconds *= 0.8


def _epochs_in(folder: Path) -> int:
    from safetensors import safe_open

    for path in folder.glob("*/training.safetensors"):
        with safe_open(str(path), framework="pt") as file:
            return _epochs(json.loads(file.metadata()["training"])["state"]) or 0
    return 0


def _epochs(state: Any) -> int | None:
    """The number of epochs in the skeleton of a saved state, wherever they stand."""
    for key, value in state.get("map", ()) if isinstance(state, dict) else ():
        found = len(value["list"]) if key == "epochs" else _epochs(value)
        if found is not None:
            return found
    return None


def _checked(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")


@dataclass(frozen=True)
class Processes:
    """Two processes with batches of 64 beside one with batches of 128, on the same pictures in the same order.

    BatchNorm sees 64 pictures at a time in the one and 128 in the other, so the results differ by that.
    """

    epochs: int
    pictures: int
    minutes: float

    def about(self, seed: int) -> dict[str, Any]:
        """How much."""
        return {"kind": "processes", **asdict(self)}

    def __call__(self, place: Place) -> dict[str, Any]:
        """Whether both ranks became the same, how far the scales are from those of one process, and both top-1."""
        epochs, pictures, count = (1, 512, 200) if place.quick else (self.epochs, self.pictures, 10_000)
        with tempfile.TemporaryDirectory(prefix="tersor-bench-") as folder:
            one, two = Path(folder) / "one", Path(folder) / "two"
            _checked([sys.executable, "-m", *_command(one, epochs, pictures, 128, count)])
            launch = ["torch.distributed.run", "--nproc_per_node=2", "--master_port=29517", "-m"]
            _checked([sys.executable, "-m", *launch, *_command(two, epochs, pictures, 64, count)])
            read = [json.loads((Path(folder) / f"{n}.json").read_text("utf8")) for n in ("one.0", "two.0", "two.1")]
        alone, first, second = read
        both_scales = [(values, first["scales"][name]) for name, values in alone["scales"].items()]
        apart = [abs(b / a - 1) for one, two in both_scales for a, b in zip(one, two, strict=True)]
        both = judged(unpacked(first["hits"], count), unpacked(alone["hits"], count))
        both["one_top1"] = both.pop("float_top1")  # what is lost is against one process
        return {
            "ranks_equal": float(first["digest"] == second["digest"]),
            "scales_apart_median": 100 * statistics.median(apart), "scales_apart_most": 100 * max(apart), **both,
        }  # fmt: skip
