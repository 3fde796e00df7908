"""What all rows share: where they work, how they are judged, and the dated file that each writes."""

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

import tersor
from benchmarks.accuracy import in_float, look
from benchmarks.common import RESULTS, surroundings
from tersor.measure import paired_interval

LONG = RESULTS / "long"
WORK = Path(__file__).resolve().parents[2] / "build/bench-long"
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Place:
    """Where a row works, and on how much.

    Args:
        folder: what it resumes from.
        seed: of everything random.
        quick: a smoke run on 512 pictures and one epoch.
    """

    folder: Path
    seed: int = 0
    quick: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """Pictures that train, judge and rank."""
        full = {"pictures": 50_000, "judged": 10_000, "held": 5000}
        return {"pictures": 512, "judged": 200, "held": 500} if self.quick else full

    def epochs(self, asked: int) -> int:
        """The number of epochs."""
        return 1 if self.quick else asked


class Row(Protocol):
    """One measurement."""

    @property
    def minutes(self) -> float:
        """How long it takes on two idle cores, about."""
        ...

    def about(self, seed: int) -> dict[str, Any]:
        """What the figures depend on; a finished row is measured again where this has changed."""
        ...

    def __call__(self, place: Place) -> dict[str, Any]:
        """The figures."""
        ...


# ------------------------------------------------ files
def path_of(name: str, seed: int, results: Path = LONG) -> Path:
    """The file of a finished row."""
    return results / f"{name}{f'-seed{seed}' if seed else ''}.json"


def stored(name: str, seed: int, results: Path = LONG) -> dict[str, Any] | None:
    """What a finished row wrote, or None."""
    path = path_of(name, seed, results)
    return json.loads(path.read_text(encoding="utf8")) if path.is_file() else None


def digest(about: Mapping[str, Any]) -> str:
    """A short name for parameters."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:10]


def finished(name: str, row: Row, seed: int, results: Path = LONG) -> bool:
    """Whether the row was measured with its present parameters."""
    found = stored(name, seed, results)
    return found is not None and digest(found["about"]) == digest(row.about(seed))


def measured(name: str, row: Row, place: Place, results: Path | None = LONG) -> dict[str, Any]:
    """Run a row and write its file; ``results=None`` writes nothing."""
    about, start = row.about(place.seed), time.perf_counter()
    folder = place.folder / f"{name}-{digest(about)}"
    figures = row(Place(folder, place.seed, place.quick))
    data = {"row": name, **surroundings(time.perf_counter() - start), "about": about, "figures": figures}
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        path_of(name, place.seed, results).write_text(json.dumps(data, indent=1, default=float) + "\n", "utf8")
    return data


# ------------------------------------------------ judges
def judged(hits: Tensor, before: Tensor) -> dict[str, Any]:
    """Top-1 with its interval, and what was lost against float on the same pictures; in points.

    Args:
        hits: 1 for each picture that was recognized, else 0.
        before: those of the float network.
    """
    low, high = paired_interval(before, hits, higher_is_better=True)
    return {
        "top1": 100 * float(hits.double().mean()),
        "interval": wilson(float(hits.sum()), hits.numel()),
        "float_top1": 100 * float(before.double().mean()),
        "lost": 100 * float((before.double() - hits.double()).mean()),
        "lost_interval": [100 * low, 100 * high],
        "hits": packed(hits),
    }


def wilson(right: float, count: int) -> list[float]:
    """The 95 % score interval of a share, in points.

    >>> [round(x, 2) for x in wilson(9120, 10_000)]
    [90.63, 91.74]
    """
    share, z = right / count, Z95 * Z95 / count
    middle, half = share + z / 2, Z95 * math.sqrt(share * (1 - share) / count + z / count / 4)
    return [100 * (middle - half) / (1 + z), 100 * (middle + half) / (1 + z)]


def packed(hits: Tensor) -> str:
    """Hits as text, which other rows are paired with.

    >>> unpacked(packed(torch.tensor([1.0, 0, 1])), 3)
    tensor([1., 0., 1.])
    """
    return np.packbits(hits.bool().numpy()).tobytes().hex()


def unpacked(text: str, count: int) -> Tensor:
    """The hits again."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count)
    return torch.from_numpy(bits).float()


def hits(task: tersor.Task, predict: Any, what: str) -> Tensor:
    """1 for each test picture that is recognized, else 0."""
    scores = look(task, predict, what).judged.scores
    assert scores is not None
    return scores.float()


@cache
def float_hits(engine: str, count: int) -> Tensor:
    """Those of ResNet-20 in float."""
    from cifar_training import task

    scores = in_float(task(judged=count), engine).judged.scores
    assert scores is not None
    return scores.float()


def told(done: tersor.Compressed) -> dict[str, Any]:
    """What happened in the training."""
    last = done.subject.trainings[-1]
    epochs = [vars(e) for e in last.history.epochs]
    return {
        "training": epochs, "training_seconds": sum(e["seconds"] for e in epochs), "held_out": last.held_out,
        "before": last.before, "after": last.after, "kept": last.kept, "notes": [*last.history.notes, *last.notes],
    }  # fmt: skip
