"""``engine="auto"``: plan for every installed engine, observe once, solve and compile each, keep the best.

The fastest engine is the best; among engines whose latencies differ only by noise, the one with the smallest file.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any, ClassVar

from tersor.engines import automatic
from tersor.engines import engine as find_engine
from tersor.engines.base import Engine, Runner
from tersor.engines.numbers import check_numbers
from tersor.errors import EngineError, RecipeError, TersorError
from tersor.files import temporary_folder
from tersor.measure import Latency, Report, interleave, ratio, shipped_bytes
from tersor.measure.formatting import size_text
from tersor.network.observations import signature
from tersor.pipeline.graph.measuring import single
from tersor.pipeline.graph.observing.observe import observables, observe
from tersor.pipeline.graph.prepare import Prepared, captured, planned
from tersor.pipeline.graph.quantize import GraphHost, settled, start
from tersor.pipeline.graph.rewriting import rewrite_by_probe
from tersor.pipeline.graph.solve import Solved, solve
from tersor.pipeline.graph.training.step import Place
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject, through
from tersor.recipe import Prune, Quantize, Recipe
from tersor.task import Task
from tersor.task.unchanged import unchanged
from tersor.words import _, said

_log = logging.getLogger(__name__)
NOWHERE = Place()
# Relative differences up to which latencies, and sizes, count as equal.
AS_FAST, AS_LARGE = 0.1, 0.01
# Seconds of calls in each timed round: enough to resolve a difference of 10 %.
ROUND = 0.02


@dataclass(frozen=True)
class Choice:
    """An engine, the network compressed for it, and, if ``auto`` chose it, the report's notes on the other engines."""

    engine: str
    subject: Subject
    runner: Runner
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidates:
    """A host that quantizes for several engines: plans of the same network share one observation pass.

    Args:
        hosts: one host per engine, by engine name.
    """

    hosts: Mapping[str, GraphHost]
    name: ClassVar[str] = GraphHost.name

    def quantize(self, step: Quantize, subject: Subject, task: Task, stages: Stages) -> Subject:
        """The subject; ``details`` maps each engine to the subject quantized for it, or to the error it raised."""
        ready: dict[str, Prepared] = {}
        found: dict[str, Subject | TersorError] = {}
        for name, host in self.hosts.items():
            try:
                with stages.stage("capture", _("{name}: planning", name=name)):
                    original = captured(task) if subject.network is None else subject.network
                    prepared = planned(original, step, host.policy)
                ready[name] = rewrite_by_probe(task, step, prepared, stages, subject.seed)
            except (EngineError, RecipeError) as error:
                found[name] = error
        for names in _of_one_network(ready):
            wanted = reduce(or_, (observables(step, ready[name]) for name in names))
            network, device = ready[names[0]].network, self.hosts[names[0]].place.device
            observations = observe(task, network, wanted, stages, subject.seed, device)
            for name in names:
                try:
                    solved = solve(step, ready[name], observations, stages, subject.seed)
                    found[name] = settled(replace(subject, host=self.hosts[name]), step, solved)
                except (EngineError, RecipeError) as error:
                    found[name] = error
        return replace(subject, history=(*subject.history, step), details=found)

    def prune(self, step: Prune, subject: Subject, task: Task, stages: Stages) -> Subject:
        """The subject with a narrower network, the same for all engines."""
        return next(iter(self.hosts.values())).prune(step, subject, task, stages)


def _of_one_network(ready: Mapping[str, Prepared]) -> list[list[str]]:
    """The engines, grouped by identical rewritten networks."""
    groups: dict[str, list[str]] = {}
    for name, prepared in ready.items():
        groups.setdefault(signature(prepared.network), []).append(name)
    return list(groups.values())


def choose_engine(
    task: Task,
    recipe: Recipe,
    threads: int,
    precision: str,
    stages: Stages,
    candidates: tuple[str, ...] | None = None,
    target: str | None = None,
    place: Place = NOWHERE,
) -> Choice:
    """Choose the best engine (``preferred``, batch 1) for the compressed network, among those that are faithful.

    An engine is faithful if its output is closer to the integer simulation than to the float network. Each candidate
    is solved and compiled once.

    Args:
        candidates: names of engines; by default those whose compilation is cheap (``tersor.engines.automatic``).
        target: the hardware to plan for; None: this machine.
        place: where weights are solved and training runs.

    Raises:
        RecipeError: no engine supports the recipe; the message gives each engine's reason.
    """
    engines, notes = _installed(automatic() if candidates is None else candidates)
    hosts = Candidates({name: GraphHost(engine.policy(target), place) for name, engine in engines.items()})
    subject = start(task, recipe, hosts, stages)
    assert subject.network is not None
    inputs = single(subject.network)
    with unchanged(task.model, "calibration"):
        subject = through(recipe.steps, subject, task, stages)
    subjects: dict[str, Subject] = {}
    runners: dict[str, Runner] = {}
    errors: dict[str, float] = {}
    for name, engine in engines.items():
        found = subject.details[name]
        try:
            if isinstance(found, TersorError):
                raise found
            with stages.stage("compile", _("{name}: compiling", name=name)):
                runner = engine.compile(found.network, threads=threads, precision=precision)
            errors[name] = _faithful(runner, found.details)
        except (EngineError, RecipeError) as error:
            notes.append(said("engine auto: {name} is excluded: {error}", name=name, error=error))
            continue
        subjects[name], runners[name] = found, runner
    if not runners:
        raise RecipeError(f"no engine takes this recipe: {'; '.join(notes)}")
    with stages.stage("measure", _("timing the engines")):
        times = interleave({name: (lambda r=r: r(*inputs)) for name, r in runners.items()}, min_time=ROUND)
    sizes = {name: _bytes(runner) for name, runner in runners.items()}
    best, why = preferred(times, sizes, errors)
    told = ", ".join(f"{name} {times[name].median:.2f} ms, {size_text(sizes[name])}" for name in times)
    note = said("engine auto: {engine} chosen, {why} ({figures})", engine=best, why=why, figures=told)
    for line in (note, *notes):
        _log.info(line)
    return Choice(best, subjects[best], runners[best], (note, *notes))


def _installed(names: tuple[str, ...]) -> tuple[dict[str, Engine], list[str]]:
    """The installed engines, and a note on each engine that is not installed."""
    engines, notes = {}, []
    for name in names:
        try:
            engines[name] = find_engine(name)
        except EngineError as error:
            notes.append(said("engine auto: {name} is excluded: {error}", name=name, error=error))
    return engines, notes


def _faithful(runner: Runner, solved: Solved) -> float:
    """The distance of the output from the float network's output.

    Raises:
        EngineError: the output is farther from the simulation than from the float network.
    """
    numbers = check_numbers(runner, solved.network, solved.prepared.original, solved.samples)
    if not numbers.integer and numbers.to_simulation > 1e-3:
        raise EngineError(
            f"its output is {numbers.to_simulation:.4f} from the simulation and {numbers.to_float:.4f} from the float "
            "network"
        )
    return numbers.to_float


def preferred(
    latencies: Mapping[str, Latency], sizes: Mapping[str, int], errors: Mapping[str, float]
) -> tuple[str, str]:
    """The best engine and the reason: the fastest, else the smallest, else the closest to the float network.

    Engines are as fast as the fastest if they are within 10 % of it, or if they beat it in some rounds (10th to 90th
    percentile of the rounds' ratios); engines are as small as the smallest if they are within 1 % of it.

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
        return best, said("the fastest")
    others = ", ".join(name for name in near if name != best)
    if len(small) == 1:
        return best, said("as fast as {others} and smaller", others=others)
    return best, said("as fast as {others} and nearer to the float network", others=others)


def _bytes(runner: Any) -> int:
    with temporary_folder() as folder:
        runner.save(folder)
        return shipped_bytes(folder)


def with_notes(report: Report, notes: tuple[str, ...]) -> Report:
    """The report with the notes on the choice of engine before its warnings."""
    return report.model_copy(update={"warnings": (*notes, *report.warnings)})

