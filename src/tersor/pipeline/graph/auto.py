"""``engine="auto"``: compile for every engine that is here, measure, keep the best that does what was planned.

The fastest is the best; but of those that are as fast but for chance, the one with the smallest file.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.engines import check_numbers
from tersor.engines import engine as find_engine
from tersor.errors import EngineError, RecipeError
from tersor.measure import Latency, interleave, ratio, shipped_bytes
from tersor.measure.formatting import size_text
from tersor.pipeline.graph.measuring import single
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.graph.solve import Solved
from tersor.pipeline.progress import Stages
from tersor.recipe import Recipe
from tersor.task import Task

CANDIDATES = ("openvino", "onnxruntime")
# Shares by which latencies, and then sizes, may differ and still count as the same.
AS_FAST, AS_LARGE = 0.1, 0.01


@dataclass(frozen=True)
class Choice:
    """The engine chosen, and what is to be said about the others."""

    engine: str
    notes: tuple[str, ...]


def choose_engine(
    task: Task, recipe: Recipe, threads: int, precision: str, stages: Stages, candidates: tuple[str, ...] = CANDIDATES
) -> Choice:
    """The engine in which the compressed network is best (``preferred``), batch 1, of those faithful to the simulation.

    Faithful: its output stands nearer to the simulation with integers than to the network in float.

    Raises:
        RecipeError: where no engine takes the recipe, with each one's reason.
    """
    runners: dict[str, Any] = {}
    errors: dict[str, float] = {}
    inputs: tuple[Any, ...] = ()
    notes: list[str] = []
    for name in candidates:
        try:
            module = find_engine(name)
            subject = start(task, recipe, GraphHost(module.policy()), stages)
            for step in recipe.steps:
                subject = step(subject, task, stages)
            solved: Solved = subject.details
            prepared = solved.prepared
            with stages.stage("compile", f"{name}: compiling"):
                runner = module.compile(solved.network, threads=threads, precision=precision)
        except (EngineError, RecipeError) as error:
            notes.append(f"engine auto: {name} is out: {error}")
            continue
        numbers = check_numbers(runner, solved.network, prepared.original, solved.samples)
        if not numbers.integer and numbers.to_simulation > 1e-3:
            notes.append(
                f"engine auto: {name} is out: its output is {numbers.to_simulation:.4f} from the simulation and "
                f"{numbers.to_float:.4f} from the float network"
            )
            continue
        runners[name], inputs = runner, single(prepared.original)
        errors[name] = numbers.to_float
    if not runners:
        raise RecipeError(f"no engine takes this recipe: {'; '.join(notes)}")
    with stages.stage("measure", "timing the engines"):
        found = interleave({name: (lambda r=r: r(*inputs)) for name, r in runners.items()})
    sizes = {name: _bytes(runner) for name, runner in runners.items()}
    best, why = preferred(found, sizes, errors)
    told = ", ".join(f"{name} {found[name].median:.2f} ms, {size_text(sizes[name])}" for name in found)
    return Choice(best, (f"engine auto: {best} chosen, {why} ({told})", *notes))


def preferred(
    latencies: Mapping[str, Latency], sizes: Mapping[str, int], errors: Mapping[str, float]
) -> tuple[str, str]:
    """The best engine and in what it is best: the fastest, else the smallest, else the nearest to the float network.

    As fast as the fastest are those within 10 % of it, and those that beat it in some of the rounds, from the 10th to
    the 90th percentile; as small as the smallest, those within 1 %.

    Args:
        latencies: of one ``interleave``; sizes: bytes to ship; errors: distance from the float network's outputs.

    >>> calls = {name: Latency(median=t, p10=t, p90=t, rounds=(t,)) for name, t in (("a", 1.0), ("b", 1.05))}
    >>> preferred(calls, {"a": 200, "b": 100}, {"a": 0.01, "b": 0.02})
    ('b', 'as fast as a and smaller')
    """
    fastest = min(latencies, key=lambda name: latencies[name].median)
    first = latencies[fastest]
    near = [
        name
        for name, latency in latencies.items()
        if latency.median <= (1 + AS_FAST) * first.median or ratio(latency, first).low <= 1
    ]
    smallest = min(sizes[name] for name in near)
    small = [name for name in near if sizes[name] <= (1 + AS_LARGE) * smallest]
    best = min(small, key=lambda name: (errors[name], latencies[name].median))
    if len(near) == 1:
        return best, "the fastest"
    others = ", ".join(name for name in near if name != best)
    return best, f"as fast as {others} and {'smaller' if len(small) == 1 else 'nearer to the float network'}"


def _bytes(runner: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        runner.save(Path(folder))
        return shipped_bytes(folder)


def with_notes(report: Any, choice: Choice | None) -> Any:
    """The report with what the choice has to say."""
    if choice is None:
        return report
    return report.model_copy(update={"warnings": (*choice.notes, *report.warnings)})

