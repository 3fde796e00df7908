"""Top-1 of a network in float, in an engine as compressed, and in simulation, on the same pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import tersor
from benchmarks.common import THREADS, Claim, say
from tersor.engines import engine as find_engine
from tersor.measure import AgreementRecorder, MetricResult, evaluate_metric, paired_interval, prediction_agreement
from tersor.network.capture import capture


@dataclass(frozen=True)
class Seen:
    """What one network answered: its scores and its predictions."""

    judged: MetricResult
    recorder: AgreementRecorder

    @property
    def points(self) -> float:
        """Top-1 in points of 100."""
        return 100 * self.judged.value


@dataclass(frozen=True)
class Pair:
    """A compressed network in an engine, beside float in that engine and its simulation; in points."""

    float_top1: float
    top1: float
    interval: tuple[float, float]
    agreement: float
    simulated_top1: float | None = None
    simulated_agreement: float | None = None

    @property
    def drop(self) -> float:
        """Points lost against float."""
        return self.float_top1 - self.top1


def look(task: tersor.Task, predict: Callable[..., Any], what: str) -> Seen:
    """Ask the task's judge."""
    assert task.evaluate is not None
    recorder = AgreementRecorder(predict)
    return Seen(evaluate_metric(task.evaluate, recorder, what), recorder)


def in_float(task: tersor.Task, engine: str) -> Seen:
    """The original network in an engine, its precision pinned."""
    runner = find_engine(engine).compile(capture(task.model, task.example), threads=THREADS)
    return look(task, runner, f"FP32 in {engine}")


def ours(
    task: tersor.Task, engine: str, before: Seen, recipe: Any = "int8-static", simulate: bool = True
) -> Pair:
    """Compress, then judge in the engine and, if wanted, in simulation."""
    say(f"{task.name}, {engine}: compressing")
    done = tersor.compress(task, recipe, engine, threads=THREADS, report=False, progress=False)
    say(f"{task.name}, {engine}: judging")
    after = look(task, done.runner, engine)
    simulation = look(task, done.network, "the simulation") if simulate and done.network else None
    return pair(before, after, simulation)


def pair(before: Seen, after: Seen, simulation: Seen | None = None) -> Pair:
    """Two answers to the same pictures side by side."""
    scores: list[Tensor] = [s.judged.scores for s in (before, after) if s.judged.scores is not None]
    low, high = paired_interval(*scores, higher_is_better=True)
    return Pair(
        before.points,
        after.points,
        (100 * low, 100 * high),
        100 * (prediction_agreement(before.recorder, after.recorder).share or 0.0),
        simulation.points if simulation else None,
        100 * (prediction_agreement(simulation.recorder, after.recorder).share or 0.0) if simulation else None,
    )


def simulation_claims(what: str, found: Pair) -> list[Claim]:
    """The two claims that the simulation tells the truth about the engine."""
    if found.simulated_top1 is None or found.simulated_agreement is None:
        return []
    apart = abs(found.top1 - found.simulated_top1)
    return [
        Claim("simulation", f"{what}, top-1 apart", apart, 0.3, unit="points"),
        Claim("simulation", f"{what}, agree", found.simulated_agreement, 98, at_most=False, unit="%"),
    ]
