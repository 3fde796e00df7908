"""What a recipe that trains needs of its task and of this machine, checked before anything runs."""

import copy
from typing import Any

import torch
from torch import nn

from tersor.errors import TaskError
from tersor.pipeline.graph.training.step import Place
from tersor.recipe import Recipe, Train
from tersor.tables import made
from tersor.task import Task
from tersor.training.accelerator import check_accelerator
from tersor.training.checks import check_reached, first_spoiled_tensor
from tersor.training.data import Batches, moved
from tersor.training.losses import LOSSES, Outputs
from tersor.training.losses.base import OutputLoss
from tersor.training.losses.features import evaluating, run
from tersor.training.objective import ALONE, Objective, arguments_of
from tersor.turns import turn
from tersor.user_code import users


def check_training(task: Task, recipe: Recipe, place: Place) -> None:
    """Refuse a recipe with a step ``train`` that would fail later, by a rehearsal on the first batch.

    Raises:
        TaskError: the task has no training data, nothing to learn, or a batch, a loss or a teacher that cannot be used;
            or a package is missing.
        RecipeError: the recipe has no step ``quantize``.
    """
    steps = [step for step in recipe.steps if isinstance(step, Train)]
    if not steps:
        return
    recipe.quantize  # noqa: B018 - it raises where there is none
    if task.train is None:
        raise TaskError(
            f"the recipe {recipe.name} has the step `train`, but the task has no training data: give Task(train=…), a "
            "function that returns an iterable of batches, or leave the step out"
        )
    if task.loss is None and not all(step.distill for step in steps):
        raise TaskError(
            "there is nothing to learn: give Task(loss=…), a function loss(model, batch), or let the step `train` "
            "distill from a teacher (`distill: auto`)"
        )
    check_accelerator(place.trackers)
    if task.teacher is not None:
        _check_teacher(task.teacher)
    with turn():
        _rehearse(task, recipe.seed, place.device or torch.device("cpu"))
        _compare(task, steps)


def _rehearse(task: Task, seed: int, device: torch.device) -> None:
    """The first batch, and the loss of a copy of the network; training draws its batches anew."""
    assert task.train is not None
    batch, held_out = Batches(task.train, seed).first(), None
    if task.validation is not None:
        with users("validation()", TaskError, "iterate over validation() to debug it"):
            held_out = next(iter(task.validation()), None)
        if held_out is None:
            raise TaskError("validation() yielded no batch: let it make a fresh iterable at every call")
    if task.loss is None:
        _check_count(task, arguments_of(batch, task.input_names))
        return
    model = copy.deepcopy(task.model).eval().to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    objective = Objective(task.loss, None)
    check_reached(model.parameters(), objective.of_task(model, moved(batch, device)))
    if held_out is not None:
        with torch.no_grad():
            objective.of_task(model, moved(held_out, device), "validation()")


def _check_count(task: Task, given: Any) -> None:
    """Without a loss, a batch holds no more than the arguments of the example, such as no labels."""
    wanted = len(task.example)
    if len(given) > wanted:
        raise TaskError(
            f"train() yielded {len(given)} arguments, but the model takes {wanted}, as in Task.example: without "
            f"Task.loss a batch is the model's arguments: {ALONE}"
        )


def _check_teacher(teacher: nn.Module) -> None:
    spoiled = first_spoiled_tensor((*teacher.named_parameters(), *teacher.named_buffers()))
    if spoiled is not None:
        raise TaskError(f"the teacher's {spoiled} holds NaN or infinity: give a teacher whose weights are finite")


def _compare(task: Task, steps: list[Train]) -> None:
    """The outputs of the network and its teacher, which have to fit for losses of outputs."""
    found = (made(LOSSES, name, "loss") for step in steps for name in step.distill)
    losses = [loss for loss in found if isinstance(loss, OutputLoss)]
    if not losses:
        return
    networks = {"model": task.model, "teacher": task.teacher or task.model}
    ours, theirs = (_outputs(task, module, who) for who, module in networks.items())
    for loss in losses:
        loss.check(ours, theirs)


def _outputs(task: Task, module: nn.Module, who: str) -> Outputs:
    example: Any = dict(task.example) if task.input_names else tuple(task.example)
    module = copy.deepcopy(module)
    with users(f"the {who}", TaskError, f"let it take Task.example: {who}(*example)"), evaluating(module):
        return Outputs(run(module, example))
