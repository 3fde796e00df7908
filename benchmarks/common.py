"""What the benches share: the claims, the file that holds them, quiet peers, tasks in short and in full."""

import argparse
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import tersor
from tersor.measure import describe_environment, interleave, ratio
from tersor.measure.latency import Latency

RESULTS = Path(__file__).resolve().parent / "results"
THREADS = 2
# Their versions are written down.
PACKAGES = ("tersor", "torch", "openvino", "onnxruntime", "nncf", "numpy", "transformers")


@dataclass(frozen=True)
class Claim:
    """One measured figure held against one line of the table of figures to reach.

    Args:
        line: the key of that line in ``benchmarks.table.LINES``.
        what: network, engine, setting.
        reach: the bound; ``at_most``: its direction. None: shown beside, no claim.
        ours: the figure; ``spread``: p10 and p90 of it round by round where it was timed, the paired 95 %
            interval where it is a loss of accuracy.
        peer: what the peer reaches, in words, in the same run.
    """

    line: str
    what: str
    ours: float
    reach: float | None = None
    at_most: bool = True
    unit: str = ""
    spread: tuple[float, float] | None = None
    peer: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the bound holds; None where there is none.

        >>> Claim("size", "ResNet-50", 3.94, reach=3.9, at_most=False).reached
        True
        """
        if self.reach is None:
            return None
        return self.ours <= self.reach if self.at_most else self.ours >= self.reach


@dataclass(frozen=True)
class Outcome:
    """What one bench found: its claims, and whatever else is worth keeping."""

    claims: list[Claim]
    details: dict[str, Any]


def main(name: str, bench: Callable[[bool], Outcome], results: Path = RESULTS) -> Outcome:
    """Run one bench and write ``results/<name>.json``; a quick one is written nowhere."""
    parser = argparse.ArgumentParser(description=bench.__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run on little data; nothing is written")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    # torch.export copies a graph whose meta holds an old-style reduce.
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
    start = time.perf_counter()
    outcome = bench(quick)
    if not quick:
        write(name, outcome, time.perf_counter() - start, results)
    for claim in outcome.claims:
        print(f"{_mark(claim.reached)} {claim.line}: {claim.what}: {figure(claim)}  {claim.peer}", flush=True)
    return outcome


def write(name: str, outcome: Outcome, seconds: float, results: Path = RESULTS) -> Path:
    """One JSON file: environment, claims with their verdicts, details."""
    data = {
        "bench": name,
        **surroundings(seconds),
        "claims": [asdict(c) | {"reached": c.reached} for c in outcome.claims],
        "details": outcome.details,
    }
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{name}.json"
    path.write_text(json.dumps(data, indent=1, default=float) + "\n", encoding="utf8")
    return path


def surroundings(seconds: float) -> dict[str, Any]:
    """Date, duration, load and environment of a measurement that has just ended."""
    environment = describe_environment(threads=THREADS, precision="fp32", packages=PACKAGES)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
        "load_per_core": round(os.getloadavg()[1] / (os.cpu_count() or 1), 2),
        "environment": environment.model_dump(mode="json"),
    }


def figure(claim: Claim) -> str:
    """The figure in words.

    >>> figure(Claim("x", "y", 1.8251, unit="×", spread=(1.7, 1.94)))
    '1.83 × (1.70…1.94)'
    """
    spread = f" ({claim.spread[0]:.2f}…{claim.spread[1]:.2f})" if claim.spread else ""
    return f"{claim.ours:.2f}{' ' + claim.unit if claim.unit else ''}{spread}"


def _mark(reached: bool | None) -> str:
    return {True: "reached", False: "MISSED ", None: "       "}[reached]


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def task(name: str, quick: bool = False, **options: Any) -> tersor.Task:
    """A task of ``benchmarks/tasks``; in short with its first calibration batch only."""
    found = import_module(name).task(**options)
    return (
        replace(found, calibration=lambda: islice(full(), 1))
        if quick and (full := found.calibration)
        else found
    )


def timed(calls: dict[str, Callable[[], object]], quick: bool) -> dict[str, Latency]:
    """All of them interleaved; enough rounds for a spread."""
    rounds, seconds = (2, 0.0) if quick else (21, 0.25)
    return interleave(calls, rounds=rounds, min_time=seconds)


def over(found: dict[str, Latency], one: str, other: str) -> tuple[float, tuple[float, float]]:
    """The ratio of the medians of ``one`` over ``other``, and its spread."""
    r = ratio(found[one], found[other])
    return r.value, (r.low, r.high)


def milliseconds(found: dict[str, Latency]) -> dict[str, dict[str, float]]:
    """Median, p10 and p90 of everything timed."""
    return {k: {"median": v.median, "p10": v.p10, "p90": v.p90} for k, v in found.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """A peer's progress bars, log lines and warnings are not ours to show; its errors still are raised."""
    sink = io.StringIO()
    with redirect_stdout(sink), redirect_stderr(sink), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
