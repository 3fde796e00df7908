"""Training from one call, with a folder to resume from, a device and trackers."""

from collections.abc import Sequence
from pathlib import Path

import torch

from tersor.arguments import usable_device, whole
from tersor.errors import RecipeError
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.graph.compress import compress_in
from tersor.pipeline.graph.training.step import Place
from tersor.recipe import Recipe, Train, resolve
from tersor.task import Task, check_task
from tersor.training.accelerator import is_first_process
from tersor.turns import in_turn


@in_turn
def finetune(
    task: Task,
    recipe: Recipe | str | Path = "int8-qat",
    engine: str = "openvino",
    *,
    folder: str | Path | None = None,
    epochs: int | None = None,
    device: str | torch.device | None = None,
    trackers: str | Sequence[str] = (),
    target: str | None = None,
    threads: int | None = None,
    precision: str = "f32",
    evaluate: bool = True,
    report: bool = True,
    progress: bool = True,
) -> Compressed:
    """Train a task's network by a recipe, compress it and measure the result.

    As ``compress`` with a recipe that trains, but it can be stopped and resumed, and runs on several processes by
    ``accelerate launch`` or ``torchrun``.

    Args:
        recipe: with at least one step `train`.
        folder: keeps the state of every epoch; a training that was stopped goes on from there, bit for bit. Its recipe,
            its network and the number of processes must be the same.
        epochs: of every step `train`, in place of the recipe's.
        device: where training runs, such as ``cuda``; None: the CPU, or what the launcher chose.
        trackers: one or several of accelerate's, such as ``tensorboard`` and ``wandb``.
        engine, target, threads, precision: as in ``compress``.
        evaluate, report, progress: as in ``compress``; of several processes, the first one alone does it.

    Raises:
        TersorError: as ``compress``; the recipe does not train, or ``folder`` belongs to another training.

    >>> import tersor
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
    >>> data = [(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    >>> task = tersor.Task("tiny", net, (torch.zeros(1, 3, 8, 8),), lambda: data, train=lambda: data)
    >>> done = finetune(task, "int4-qat", engine="torch", epochs=1, report=False)
    >>> done(data[0][0]).shape
    torch.Size([8, 8, 6, 6])
    """
    check_task(task, "finetune")
    recipe = resolve(recipe)
    if not any(isinstance(step, Train) for step in recipe.steps):
        raise RecipeError(
            f"the recipe {recipe.name} has no step `train`: take one that has, as `tersor recipes` lists them, or use "
            "tersor.compress"
        )
    if epochs is not None:
        epochs = whole("epochs", epochs, 0, None, "leave it out to take the recipe's", RecipeError)
        steps = [s.model_copy(update={"epochs": epochs}) if isinstance(s, Train) else s for s in recipe.steps]
        recipe = recipe.model_copy(update={"steps": tuple(steps)})
    first = is_first_process()
    where, on = None if folder is None else Path(folder), None if device is None else usable_device(device)
    place = Place(where, on, (trackers,) if isinstance(trackers, str) else tuple(trackers))
    return compress_in(
        place, task, recipe, engine, target=target, threads=threads, precision=precision,
        evaluate=evaluate and first, report=report and first, progress=progress and first,
    )
