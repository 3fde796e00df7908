"""`optimize`: the fastest network that loses no more than is allowed, found, measured, and judged on other samples."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tersor
from tersor.checkpoints.destination import check_folder
from tersor.engines import engine as find_engine
from tersor.engines.options import check_options
from tersor.engines.targets import cpuinfo
from tersor.errors import RecipeError, TaskError
from tersor.files import temporary_folder, working_folder
from tersor.measure.environment import cpu_name, usable_processors
from tersor.measure.formatting import is_fraction
from tersor.measure.metric import MetricResult
from tersor.network.observations import signature
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.graph.auto import choose_engine
from tersor.pipeline.graph.prepare import captured
from tersor.pipeline.progress import Stages
from tersor.recipe import Prune, Quantization, Quantize, Recipe, Train, resolve
from tersor.search.bench import Bench
from tersor.search.formats import Floats, floats
from tersor.search.goal import Budget, Goal, seconds_of
from tersor.search.judge import Judge
from tersor.search.plans import Menu, plans
from tersor.search.proof import proved, saved
from tersor.search.trial import Candidate, Facts, Ledger, Trial
from tersor.task import Task, check_task
from tersor.turns import in_turn

RATED, FEWEST, RUNS = 64, 4, 30
"""Samples by which layers are rated, at most and at least, and about how many runs of each it takes."""
SHARE = 0.3
"""Of the time that is left, for rating layers."""
UNKNOWN = {"plain": 1.0, "floats": 1.5, "pruned": 20.0}
"""How many times as long as the first candidate those of a kind take, until one was made."""
REPORT = 4
"""The report evaluates three networks; so many evaluations and one candidate are left for it."""
REPEATABLE = 0.02
"""Two evaluations of the same network may differ by this share of what may be lost."""
_log = logging.getLogger(__name__)


@in_turn
def optimize(
    task: Task,
    recipe: Recipe | str | Path = "int8-static",
    engine: str = "auto",
    *,
    max_drop: float | str | None = None,
    min_speedup: float | str | None = None,
    max_bytes: int | str | None = None,
    budget: float | str = "30m",
    folder: str | Path | None = None,
    force: bool = False,
    narrower: bool = True,
    target: str | None = None,
    threads: int | None = None,
    precision: str = "f32",
    progress: bool = True,
) -> Compressed:
    """Search for the fastest network that keeps a contract, and prove that it does.

    The search begins with the recipe. Where too much is lost, layers stay in float, chosen by an integer program over
    what each loses and what it costs in the engine. Where there is room, ever narrower networks are made, repaired in
    closed form. Each candidate is timed beside the original and scored by the task's ``evaluate``. Half of the samples
    choose; the other half, which no choice has touched, judges the result.

    Args:
        recipe: what the search begins with, without steps ``train``.
        engine: as in ``compress``; ``auto`` chooses the one in which the first candidate is fastest.
        max_drop: what may be lost of the metric: points of a fraction (0.5 is 0.005), else in the metric's own unit;
            or ``"0.5%"`` of the metric. The result is then as fast as it can be.
        min_speedup: over the original network in the same engine. Without ``max_drop`` as little as possible is lost.
        max_bytes: of the files that the engine reads, such as ``"2MB"``.
        budget: the time for all, such as ``"30m"``.
        folder: a new folder for the result, with the alternatives below ``front``. A search that was stopped goes on
            where it was.
        force: replace the folder.
        narrower: whether layers may become narrower and branches go.
        target, threads, precision, progress: as in ``compress``.

    Returns:
        The result; its report has a ``contract`` with the verdict and all candidates. If nothing keeps the contract,
        the nearest candidate.

    Raises:
        TaskError: the task has no ``evaluate``, or it is not repeatable.
        RecipeError: nothing is asked for, or the budget is too short for one evaluation.

    >>> import torch, tersor
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)).eval()
    >>> x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    >>> labels = net(x).argmax(1)
    >>> task = tersor.Task("mlp", net, (x[:1],), lambda: [(x,)], lambda predict: predict(x).argmax(1) == labels,
    ...                    metric="agreement")
    >>> done = optimize(task, engine="torch", max_drop=20, budget="60s", narrower=False, progress=False)
    >>> done.report.contract.goal, done.report.contract.kept
    (('at most 20 points lost',), True)
    """
    goal, seconds = Goal.parse(max_drop, min_speedup, max_bytes), seconds_of(budget)
    recipe = _checked(task, recipe)
    threads = threads or usable_processors()
    check_options(None if engine == "auto" else find_engine(engine), threads, precision)
    out = None if folder is None else check_folder(folder, force)
    with ExitStack() as stack:
        parts = stack.enter_context(temporary_folder() if out is None else working_folder(out))
        stages = stack.enter_context(Stages(progress))
        network = captured(task)
        about = {"version": tersor.__version__, "network": signature(network), "engine": engine,
                 "threads": threads, "precision": precision, "target": target, "cpu": cpu_name(cpuinfo()),
                 "recipe": recipe.model_dump(mode="json"), "task": task.name}  # fmt: skip
        ledger = Ledger(parts, about)
        time = Budget(seconds, ledger.spent)
        if engine == "auto":
            engine = ledger.memo(
                "engine", lambda: choose_engine(task, recipe, threads, precision, stages, target=target).engine
            )
        bench = Bench(task, network, engine, threads, precision, target, ledger, stages)
        with _kept(ledger, time):
            before = _original(bench, goal, time)
            fraction = is_fraction(task.metric, before.value) or _of_hits(before)
            judge = Judge.of(
                goal, before, higher_is_better=task.higher_is_better, fraction=fraction, seed=recipe.seed
            )
            search = Search(bench, judge, time, recipe)
            trials = search.run(narrower and not _prunes(recipe))
            found = proved(bench, judge, trials, time, ended=search.ended)
        if out is not None:
            saved(found, trials, ledger, parts, out, force)
            ledger.remove()
        return found


def _checked(task: Task, recipe: Recipe | str | Path) -> Recipe:
    check_task(task, "optimize")
    if task.evaluate is None:
        raise TaskError("a contract is judged by the task's metric, and this task has no evaluate: give one")
    recipe = resolve(recipe)
    if any(isinstance(step, Train) for step in recipe.steps):
        raise RecipeError(
            f"the recipe {recipe.name} trains: a search begins with a recipe without steps `train`, and a result is "
            "trained with `finetune`"
        )
    if not any(isinstance(step, Quantize) for step in recipe.steps):
        raise RecipeError(f"the recipe {recipe.name} has no step `quantize`, which a search chooses the formats of")
    return recipe


def _prunes(recipe: Recipe) -> bool:
    return any(isinstance(step, Prune) for step in recipe.steps)


def _of_hits(found: MetricResult) -> bool:
    return found.scores is not None and bool(((found.scores == 0) | (found.scores == 1)).all())


@contextmanager
def _kept(ledger: Ledger, time: Budget) -> Iterator[None]:
    """The time counts, however it ends."""
    try:
        yield
    finally:
        ledger.spend(time.used)


def _original(bench: Bench, goal: Goal, time: Budget) -> MetricResult:
    """The original's metric, evaluated twice to see that it is repeatable.

    Raises:
        TaskError: it is not.
        RecipeError: the budget is shorter than a search can be.
    """
    float_ = Quantization(format="fp32")
    recipe = Recipe(steps=[Quantize(weights=float_, activations=float_, bias_correction=False)], name="original")
    candidate = Candidate("the original network", recipe, "original")
    known = bench.ledger.read(candidate)
    if known is not None:
        bench.slowest = known.facts.seconds
        return MetricResult(known.facts.metric, known.scores)
    found = bench.metric(bench.original, candidate.name)
    if not time.allows((1 + REPORT) * bench.slowest):
        raise RecipeError(
            f"one evaluation takes {bench.slowest:.1f} s, and a search with its report at least six: the budget of "
            f"{time.seconds:.0f} s is too short; give more, or evaluate fewer samples"
        )
    again = bench.metric(bench.original, candidate.name)
    apart = abs(found.value - again.value)
    fraction = is_fraction(bench.task.metric, found.value) or _of_hits(found)
    allowed = abs(found.value) / 100 if goal.max_drop is None else goal.max_drop.bound(found.value, fraction)
    if apart > REPEATABLE * allowed:
        raise TaskError(
            f"evaluate gave {found.value:.6g} and then {again.value:.6g} for the same network, which is more than a "
            "fiftieth of what may be lost: let it score the same samples in the same order, with a fixed seed"
        )
    facts = Facts(name=candidate.name, seconds=bench.slowest, metric=found.value)
    bench.ledger.write(Trial(candidate, facts, recipe, found.scores))
    return found


@dataclass
class Search:
    """Runs what the plans ask for, until they end or the time does.

    Args:
        bench: makes and measures candidates.
        judge: compares them.
        time: that is left.
        recipe: of the first candidate.

    Attributes:
        ended: whether the plans did, and not the time.
    """

    bench: Bench
    judge: Judge
    time: Budget
    recipe: Recipe
    ended: bool = False

    def run(self, narrower: bool) -> list[Trial]:
        """All trials, in order.

        Raises:
            RecipeError: the first candidate cannot be made.
        """
        trials, each = list[Trial](), plans(Menu(self.recipe, self.floats, narrower), self.judge)
        candidate = next(each)
        while True:
            trial = self.bench.known(candidate)
            if trial is None:
                if trials and not self.time.allows(self._expected(candidate, trials)):
                    return trials
                try:
                    trial = self.bench.tried(candidate, self.judge.before)
                except KeyboardInterrupt:
                    if not trials:
                        raise
                    return trials  # what was found is judged and saved
                self.bench.ledger.spend(self.time.used)
            if not trials and trial.failed:
                raise RecipeError(f"the recipe {candidate.recipe.name} cannot be made: {trial.facts.error}")
            trials.append(trial)
            if self.judge.best(trials) is trial:
                self.bench.best = self.bench.latest
            _log.info("%s: %s", candidate.name, trial.facts)
            try:
                candidate = each.send(trial)
            except StopIteration:
                self.ended = True
                return trials

    def floats(self) -> list[tuple[str, ...]]:
        """The choices of layers that stay in float, rated on as many samples as there is time for."""
        bench, left = self.bench, self.time.seconds - self.time.used

        def measured() -> Any:
            samples = min(RATED, int(SHARE * left / (RUNS * bench.seconds_of_a_sample())))
            if samples < FEWEST:
                return None
            return floats(
                bench.task, self.recipe, bench.engine, bench.compiled, samples, bench.stages, target=bench.target
            ).to_json()

        rows = bench.ledger.memo("floats", measured)
        return [] if rows is None else Floats.from_json(rows).choices()

    def _expected(self, candidate: Candidate, trials: list[Trial]) -> float:
        """Seconds until this candidate is measured and the best one is reported."""
        alike = [t.facts.seconds for t in trials if t.candidate.kind == candidate.kind]
        first = trials[0].facts.seconds
        return max(alike, default=UNKNOWN[candidate.kind] * first) + first + REPORT * self.bench.slowest
