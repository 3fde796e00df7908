"""What trains with its quantization: the network of a task as a graph, or a model as it is."""

from pathlib import Path
from typing import Any, TypeVar, overload

from torch import nn

from tersor.errors import TaskError
from tersor.network.trainable.module import Trainable
from tersor.pipeline.graph.own_loop import trainable_task
from tersor.pipeline.modules.training import trainable_model
from tersor.recipe import Recipe
from tersor.task import Task

Model = TypeVar("Model", bound=nn.Module)


@overload
def trainable(
    task: Task,
    recipe: Recipe | str | Path | None = None,
    engine: str | None = None,
    *,
    target: str | None = None,
    progress: bool = True,
) -> Trainable: ...


@overload
def trainable(task: Model, recipe: Recipe | str | Path | None = None, *, progress: bool = True) -> Model: ...


def trainable(
    task: Any,
    recipe: Recipe | str | Path | None = None,
    engine: str | None = None,
    *,
    target: str | None = None,
    progress: bool = True,
) -> Any:
    """What trains with its quantization in a loop of one's own, in train mode: a student.

    From a task, its network as a plain ``nn.Module`` with quantizers, calibrated; ``tersor.compress(student)`` compiles
    and measures what was trained. From a model alone, a copy of its own class whose linear layers, embeddings and
    recurrent layers train as ``quantize_dynamic`` would deploy them; ``tersor.quantize_dynamic(student)`` stores what
    was trained.

    Args:
        task: a Task, or for recipes without calibration an ``nn.Module``.
        recipe: with a step ``quantize``; a step ``train`` is what the loop does instead, and only names the quantizers.
            None: ``int8-qat`` for a task, ``int8-dynamic`` for a model.
        engine, target: what the plan of a task is for, as in ``compress``; None: ``openvino`` on this machine.

    Raises:
        TersorError: as ``compress`` or ``quantize_dynamic``, for the model, the data, the recipe and the engine.

    >>> student = trainable(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> type(student).__name__, type(student[0]).__name__, isinstance(student[0], nn.Linear)
    ('Sequential', 'TrainedLinear', True)
    """
    if not isinstance(task, nn.Module):
        return trainable_task(task, recipe or "int8-qat", engine or "openvino", target=target, progress=progress)
    if engine is not None or target is not None:
        raise TaskError("a model alone is not planned for an engine: leave `engine` and `target` out, or give a Task")
    return trainable_model(task, recipe or "int8-dynamic", progress=progress)
