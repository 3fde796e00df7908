"""``engine="auto"``: compile for every engine that is here, measure, keep the fastest that does what was planned."""

from dataclasses import dataclass
from typing import Any

from tersor.engines import check_numbers
from tersor.engines import engine as find_engine
from tersor.errors import EngineError, RecipeError
from tersor.measure import interleave
from tersor.pipeline.measuring import single
from tersor.pipeline.prepare import prepare
from tersor.pipeline.progress import Stages
from tersor.pipeline.solve import solve
from tersor.recipe import Recipe
from tersor.task import Task

CANDIDATES = ("openvino", "onnxruntime")


@dataclass(frozen=True)
class Choice:
    """The engine chosen, and what is to be said about the others."""

    engine: str
    notes: tuple[str, ...]


def choose_engine(
    task: Task, recipe: Recipe, threads: int, precision: str, stages: Stages, candidates: tuple[str, ...] = CANDIDATES
) -> Choice:
    """The engine in which the compressed network is fastest, batch 1, among those faithful to the simulation.

    Faithful: its output stands nearer to the simulation with integers than to the network in float.

    Raises:
        RecipeError: where no engine takes the recipe, with each one's reason.
    """
    runners: dict[str, Any] = {}
    inputs: tuple[Any, ...] = ()
    notes: list[str] = []
    for name in candidates:
        try:
            module = find_engine(name)
            with stages.stage("capture", f"{name}: planning"):
                prepared = prepare(task, recipe, module.policy())
            solved = solve(task, recipe, prepared, stages)
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
    if not runners:
        raise RecipeError(f"no engine takes this recipe: {'; '.join(notes)}")
    with stages.stage("measure", "timing the engines"):
        found = interleave({name: (lambda r=r: r(*inputs)) for name, r in runners.items()})
    best = min(found, key=lambda name: found[name].median)
    times = ", ".join(f"{name} {latency.median:.2f} ms" for name, latency in found.items())
    return Choice(best, (f"engine auto: {best} chosen ({times})", *notes))


def with_notes(report: Any, choice: Choice | None) -> Any:
    """The report with what the choice has to say."""
    if choice is None:
        return report
    return report.model_copy(update={"warnings": (*choice.notes, *report.warnings)})

