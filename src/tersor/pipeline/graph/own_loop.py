"""Training from one call, and the student for a training loop of one's own."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tersor.engines import engine as find_engine
from tersor.engines.options import check_options
from tersor.errors import RecipeError, TaskError
from tersor.measure.environment import usable_processors
from tersor.network.trainable.module import Trainable
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.graph.auto import Choice
from tersor.pipeline.graph.deployed import check_activations
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.graph.reporting.completed import completed
from tersor.pipeline.graph.solve import Solved
from tersor.pipeline.graph.training.step import Deployed, Trained, finished, held_out_losses
from tersor.pipeline.graph.training.student import quantizers_of, student_of, with_trained
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject, through
from tersor.recipe import Recipe, Train, resolve
from tersor.task import Task, check_task
from tersor.task.unchanged import unchanged
from tersor.training.history import History
from tersor.turns import in_turn
from tersor.words import said


@dataclass(frozen=True, eq=False)
class Context:
    """Where a student comes from; a copy of the student shares it, and a pickled student is without it.

    Args:
        task: whose network it is.
        recipe: what it was asked for.
        engine, target: what its plan is for.
        subject: the quantized network.
    """

    task: Task
    recipe: Recipe
    engine: str
    target: str | None
    subject: Subject

    def __deepcopy__(self, memo: Any) -> "Context":
        return self

    def __reduce__(self) -> Any:
        return _nothing, ()


def _nothing() -> None:
    return None


@in_turn
def trainable_task(
    task: Task,
    recipe: Recipe | str | Path = "int8-qat",
    engine: str = "openvino",
    *,
    target: str | None = None,
    progress: bool = True,
) -> Trainable:
    """The task's network as a plain ``nn.Module`` with quantizers, calibrated, for a training loop of one's own.

    ``tersor.compress(student)`` then compiles and measures what was trained.

    Args:
        recipe: with a step ``quantize``; a step ``train`` is what the loop does instead, and only names the quantizers.
        engine, target: what the plan is for, as in ``compress``.

    Raises:
        TersorError: as ``compress``, for the model, the data, the recipe and the engine.

    >>> import torch, tersor
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
    >>> data = [(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    >>> student = trainable_task(tersor.Task("tiny", net, (torch.zeros(1, 3, 8, 8),), lambda: data), engine="torch")
    >>> optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    >>> loss = student.train()(data[0][0]).square().mean()
    >>> loss.backward(); optimizer.step()
    >>> tersor.compress(student, report=False)(data[0][0]).shape
    torch.Size([8, 8, 6, 6])
    """
    check_task(task, "trainable")
    recipe = resolve(recipe)
    if any(isinstance(step, Train) and step.sparsity is not None for step in recipe.steps):
        raise RecipeError(
            f"the recipe {recipe.name} makes weights zero while it trains (`sparsity`), which a loop of your own does "
            "itself: leave `sparsity` out, and mask weights by ProximalOptimizer of tersor.training.proximal.optimizer"
        )
    with Stages(progress) as stages:
        subject = start(task, recipe, GraphHost(find_engine(engine).policy(target)), stages)
        with unchanged(task.model, "calibration"):
            steps = [step for step in recipe.steps if not isinstance(step, Train)]
            subject = through(steps, subject, task, stages)
    asked = _asked(recipe)
    if isinstance(subject.details, Solved):
        student = student_of(task, subject.details, quantizers_of(asked), dropout=asked.dropout)
    else:
        raise RecipeError(f"the recipe {recipe.name} has no step `quantize`: train your own model, then compress it")
    student._context = Context(task, recipe, engine, target, subject)
    return student.train()


def _asked(recipe: Recipe) -> Train:
    """The step `train` that the loop stands for."""
    return next((s for s in reversed(recipe.steps) if isinstance(s, Train)), Train())


def check_not_wrapped(value: Any, who: str) -> None:
    """Refuse a module that holds a student, as DistributedDataParallel, AveragedModel and torch.compile make it.

    Raises:
        TaskError: naming the module in it.
    """
    held = value.named_modules() if isinstance(value, nn.Module) and not isinstance(value, Trainable) else ()
    for name, module in held:
        if isinstance(module, Trainable):
            raise TaskError(
                f"{who} got the wrapper {type(value).__name__}, which holds a student: give the student itself, its "
                f"`{name}`"
            )


def compress_student(
    student: Trainable, engine: str | None, *, threads: int | None, precision: str, evaluate: bool, report: bool,
    progress: bool,
) -> Compressed:
    """What was trained in a loop of the user's own, as ``compress`` returns it."""
    context: Context | None = student._context
    if context is None:
        raise TaskError(
            "this student was unpickled, and has no task: load its state_dict into a student that tersor.trainable or "
            "tersor.prepare_qat made"
        )
    name = engine or context.engine
    check_options(find_engine(name), threads, precision)
    threads = threads or usable_processors()
    solved: Solved = context.subject.details
    mode = student.training
    try:
        network = finished(student.eval(), solved)
        subject = replace(context.subject, network=network, details=with_trained(solved, student, network))
    finally:
        student.train(mode)
    if name != context.engine:
        check_activations(network, find_engine(name).policy(context.target))
    with Stages(progress) as stages:
        subject, notes = _judged(subject, context, student) if report else (subject, ())
        runner = find_engine(name).compile(network, threads=threads, precision=precision)
        made = Choice(name, subject, runner, notes)
        return completed(context.task, context.recipe, made, threads, stages, evaluate=evaluate, report=report)


def _judged(subject: Subject, context: Context, student: Trainable) -> tuple[Subject, tuple[str, ...]]:
    """The subject with a record of the training, and notes.

    Without ``Task.loss`` nobody knows what the loop was for: then a larger difference from the teacher is no verdict.
    """
    assert subject.network is not None
    task, solved = context.task, context.subject.details
    untrained = student_of(task, solved, quantizers_of(_asked(context.recipe)))
    # The student may lie on an accelerator; the networks are judged where they lie.
    trained = copy.deepcopy(student).to("cpu")
    pair = Deployed(solved.network, untrained), Deployed(subject.network, trained)
    (first, last), what = held_out_losses(task, subject, *pair)
    notes = student._graphs.notes
    if task.loss is not None:
        return replace(subject, trainings=(Trained(History(), first, last, True, what, notes),)), ()
    if last > first:
        rose = {"what": what, "before": f"{first:.4g}", "after": f"{last:.4g}"}
        notes = (*notes, said("after training, {what} rose from {before} to {after}", **rose))
    return subject, notes
