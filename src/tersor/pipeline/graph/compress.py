"""The whole pipeline in one readable function."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tersor.arguments import usable_device
from tersor.engines import engine as find_engine
from tersor.engines.options import check_options
from tersor.errors import RecipeError
from tersor.measure.environment import usable_processors
from tersor.network.trainable.module import Trainable
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.graph.auto import NOWHERE, Choice, choose_engine
from tersor.pipeline.graph.own_loop import check_not_wrapped, compress_student
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.graph.reporting.completed import completed
from tersor.pipeline.graph.solve import Solved
from tersor.pipeline.graph.training.checks import check_training
from tersor.pipeline.graph.training.step import Place
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import through
from tersor.recipe import Recipe, Train, resolve
from tersor.task import Task, check_task
from tersor.task.unchanged import unchanged
from tersor.turns import in_turn
from tersor.words import _, said

DEFAULT_RECIPE, DEFAULT_ENGINE = "int8-static", "openvino"
_log = logging.getLogger(__name__)


@in_turn
def compress(
    task: Task | Trainable,
    recipe: Recipe | str | Path = DEFAULT_RECIPE,
    engine: str | None = None,
    *,
    target: str | None = None,
    threads: int | None = None,
    precision: str = "f32",
    evaluate: bool = True,
    report: bool = True,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> Compressed:
    """Compress a task's network for an engine and measure the result.

    Args:
        task: the network with its data; or a student of ``tersor.trainable``, trained, whose recipe is its own.
        recipe: a Recipe, the name of a preset, or the path of a YAML file.
        engine: the name of an engine in ``tersor.engines.ENGINES``, as listed by ``tersor engines``; ``auto``
            compiles for all installed engines that compile quickly, and keeps the fastest faithful one. None:
            ``openvino``, or what a student was planned for.
        target: the hardware to plan for, such as ``x86-vnni``: one of the engine's ``targets``; None: this machine.
            Figures are always measured on this machine.
        threads: threads of the engine, at most two for each logical processor; None: all processors that this process
            may use.
        precision: the precision of float operators, ``f32`` or ``bf16`` where the engine computes in it; it is pinned
            and reported.
        evaluate: False skips the metric.
        report: False skips all measurements; ``Compressed.report`` is then None.
        progress: show progress bars on a terminal.
        device: where Hessians are collected, the weights that need them solved, and steps ``train`` run, such as
            ``cuda``; None: the CPU, on which all else is done in any case. A student stays where it is.

    Raises:
        TersorError: a subclass of it; the message names the layer or file, the value and the remedy.

    >>> import torch, tersor
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
    >>> data = [(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    >>> done = compress(Task("tiny", net, (torch.zeros(1, 3, 8, 8),), lambda: data), engine="torch", report=False)
    >>> done(data[0][0]).shape
    torch.Size([8, 8, 6, 6])
    """
    if isinstance(task, Trainable):
        if recipe != DEFAULT_RECIPE:
            raise RecipeError(
                "a student has the recipe that tersor.trainable made it with: leave the recipe out, or make a student "
                "with another one"
            )
        return compress_student(
            task, engine, threads=threads, precision=precision, evaluate=evaluate, report=report, progress=progress
        )
    check_not_wrapped(task, "compress")
    check_task(task, "compress")
    return compress_in(
        Place(device=usable_device(device)), task, recipe, engine or DEFAULT_ENGINE, target=target, threads=threads,
        precision=precision, evaluate=evaluate, report=report, progress=progress,
    )


def compress_in(
    place: Place, task: Task, recipe: Recipe | str | Path, engine: str, *, target: str | None, threads: int | None,
    precision: str, evaluate: bool, report: bool, progress: bool,
) -> Compressed:
    """``compress`` with the place where weights are solved and training runs."""
    recipe = resolve(recipe)
    check_options(None if engine == "auto" else find_engine(engine), threads, precision)
    check_training(task, recipe, place)
    threads = threads or usable_processors()
    with Stages(progress) as stages:
        if engine == "auto":
            made = _in_chosen_engine(task, recipe, threads, precision, stages, target, place)
        else:
            made = in_engine(task, recipe, engine, threads, precision, stages, target, place)
        return completed(task, recipe, made, threads, stages, evaluate=evaluate, report=report)


def _in_chosen_engine(
    task: Task, recipe: Recipe, threads: int, precision: str, stages: Stages, target: str | None, place: Place
) -> Choice:
    """``auto``: the best engine for what the recipe makes without training, and trained once, for that engine."""
    steps = tuple(step for step in recipe.steps if not isinstance(step, Train))
    untrained = recipe.model_copy(update={"steps": steps})
    made = choose_engine(task, untrained, threads, precision, stages, target=target, place=place)
    if untrained == recipe:
        return made
    trained = in_engine(task, recipe, made.engine, threads, precision, stages, target, place)
    note = said("engine auto: chosen by the network before training, and trained for this engine alone")
    return replace(trained, notes=(note, *made.notes))


def in_engine(
    task: Task,
    recipe: Recipe,
    engine: str,
    threads: int,
    precision: str,
    stages: Stages,
    target: str | None = None,
    place: Place = NOWHERE,
) -> Choice:
    """The network compressed for one engine, and compiled."""
    module = find_engine(engine)
    _log.info("engine %s %s, recipe %s, %d threads, %s", engine, module.version(), recipe.name, threads, precision)
    compiled = partial(module.compile, threads=threads, precision=precision)
    subject = start(task, recipe, GraphHost(module.policy(target), place, compiled), stages)
    with unchanged(task.model, "calibration"):
        subject = through(recipe.steps, subject, task, stages)
    solved: Solved = subject.details
    with stages.stage("compile", _("compiling")):
        return Choice(engine, subject, compiled(solved.network))
