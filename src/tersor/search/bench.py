"""Makes candidates and measures each: its speed beside the original and the first candidate, and the metric."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tersor.engines import engine as find_engine
from tersor.engines import load_runner
from tersor.engines.base import Runner
from tersor.errors import EngineError, TaskError, TersorError
from tersor.files import temporary_folder
from tersor.measure import evaluate_metric, interleave, ratio, shipped_bytes
from tersor.measure.choosing.device import alone_on_the_device
from tersor.measure.metric import MetricResult
from tersor.network.network import Network
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.graph.auto import Choice
from tersor.pipeline.graph.compress import in_engine
from tersor.pipeline.graph.measuring import predictor, single
from tersor.pipeline.graph.reporting.completed import completed
from tersor.pipeline.graph.training.step import Place
from tersor.pipeline.progress import Stages
from tersor.recipe import Prune, Recipe
from tersor.search.trial import NETWORK, STATE, Candidate, Facts, Ledger, Trial
from tersor.task import Task
from tersor.task.unchanged import unchanged
from tersor.words import _

ROUNDS, SECONDS = 21, 0.02


@dataclass
class Bench:
    """One task in one engine.

    Args:
        task: the model and its data.
        network: the original.
        engine, threads, precision, target: as in ``compress``.
        ledger: keeps what was measured.
        stages: shows the progress.

    Attributes:
        slowest: the seconds of the longest evaluation.
        first: the first candidate, which all others are compared with.
        latest, best: the candidate that was made last, and the best one, with the digests of their recipes.
    """

    task: Task
    network: Network
    engine: str
    threads: int
    precision: str
    target: str | None
    ledger: Ledger
    stages: Stages
    slowest: float = 0.0
    first: Runner | None = field(default=None, init=False)
    latest: tuple[str, Choice] | None = field(default=None, init=False)
    best: tuple[str, Choice] | None = field(default=None, init=False)

    @cached_property
    def original(self) -> Runner:
        """The original in the engine."""
        return self.compiled(self.network)

    def compiled(self, network: Network) -> Runner:
        """A network in the engine."""
        return find_engine(self.engine).compile(network, threads=self.threads, precision=self.precision)

    def metric(self, runner: Callable[..., Any], what: str) -> MetricResult:
        """The task's metric of a network."""
        assert self.task.evaluate is not None
        start = time.monotonic()
        with self.stages.stage("measure", _("evaluating {what}", what=what)), unchanged(self.task.model, "evaluate"):
            found = evaluate_metric(self.task.evaluate, predictor(self.network, runner), what)
        self.slowest = max(self.slowest, time.monotonic() - start)
        return found

    def seconds_of_a_sample(self) -> float:
        """One run of the original in PyTorch, on one sample; the second is timed."""
        inputs = single(self.network)
        self.network(*inputs)
        start = time.monotonic()
        self.network(*inputs)
        return max(1e-6, time.monotonic() - start)

    def made(self, recipe: Recipe) -> Choice:
        """What a recipe makes; the latest one and the best one are there already."""
        digest = Candidate("", recipe).digest
        for known in (self.latest, self.best):
            if known is not None and known[0] == digest:
                return known[1]
        place = Place(self.ledger.folder / STATE)
        made = in_engine(self.task, recipe, self.engine, self.threads, self.precision, self.stages, self.target, place)
        self.latest = digest, made
        return made

    def known(self, candidate: Candidate) -> Trial | None:
        """What came of a candidate in an earlier run, if it was tried; the first one is compared with all others."""
        found = self.ledger.read(candidate)
        if found is not None and not found.failed and self.first is None:
            folder = self.ledger.place(candidate) / NETWORK
            self.first = load_runner(self.engine, str(folder), threads=self.threads, precision=self.precision)
        return found

    def tried(self, candidate: Candidate, before: MetricResult) -> Trial:
        """A candidate made, measured and kept; what cannot be made is kept with the reason."""
        start = time.monotonic()
        try:
            made = self.made(candidate.recipe)
            scores = self.metric(made.runner, candidate.name)
        except EngineError as error:  # an engine that disappears fails all others, too
            if not _runs(self.engine):
                raise
            trial = self._failed(candidate, start, error)
        except TersorError as error:
            trial = self._failed(candidate, start, error)
        else:
            if before.samples != scores.samples:
                raise TaskError(
                    f"evaluate scored {before.samples or 'no'} samples of the original network and "
                    f"{scores.samples or 'no'} of {candidate.name}: score the same samples in every call"
                )
            facts, recipe = self._measured(candidate, made, scores, start), pinned(candidate.recipe, made)
            trial = Trial(candidate, facts, recipe, scores.scores)
            self.latest = Candidate("", recipe).digest, made
            self.ledger.write(trial, self.result(made, recipe).save)
            return trial
        self.ledger.write(trial)
        return trial

    def result(self, made: Choice, recipe: Recipe, *, report: bool = False) -> Compressed:
        """The result of a choice, under the recipe that makes it again."""
        return completed(
            self.task, recipe, made, self.threads, self.stages, evaluate=report, report=report
        )

    def _measured(self, candidate: Candidate, made: Choice, found: MetricResult, start: float) -> Facts:
        inputs, runner = single(self.network), made.runner
        self.first = self.first or runner
        runners = {"original": self.original, "first": self.first, "this": runner}
        with alone_on_the_device():
            times = interleave(
                {name: (lambda r=r: r(*inputs)) for name, r in runners.items()}, rounds=ROUNDS, min_time=SECONDS
            )
        speed = ratio(times["original"], times["this"])
        with temporary_folder() as folder:
            runner.save(folder)
            size = shipped_bytes(folder)
        return Facts(
            name=candidate.name, seconds=time.monotonic() - start, speedup=speed.value, spread=(speed.low, speed.high),
            over_first=1.0 if runner is self.first else ratio(times["first"], times["this"]).value,
            predicted=next((p.faster for p in made.subject.prunings[::-1] if p.faster), None), bytes=size,
            metric=found.value,
        )  # fmt: skip

    @staticmethod
    def _failed(candidate: Candidate, start: float, error: TersorError) -> Trial:
        facts = Facts(name=candidate.name, seconds=time.monotonic() - start, error=str(error) or type(error).__name__)
        return Trial(candidate, facts, candidate.recipe)


def pinned(recipe: Recipe, made: Choice) -> Recipe:
    """The recipe with what its prunings chose written out."""
    records = iter(made.subject.prunings)
    steps = [(next(records).pinned or step) if isinstance(step, Prune) else step for step in recipe.steps]
    return recipe.model_copy(update={"steps": tuple(steps)})


def _runs(engine: str) -> bool:
    try:
        find_engine(engine)
    except EngineError:
        return False
    return True
