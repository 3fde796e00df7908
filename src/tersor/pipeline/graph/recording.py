"""The calls of torch.ao: ``prepare`` a model and run data through it, or ``prepare_qat`` and train it; ``convert``."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.engines import engine as find_engine
from tersor.engines import simulation
from tersor.engines.options import check_options
from tersor.errors import CalibrationError, TaskError
from tersor.network.trainable.module import Trainable
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.graph.compress import compress
from tersor.pipeline.graph.own_loop import check_not_wrapped, trainable_task
from tersor.pipeline.graph.prepare import Prepared
from tersor.pipeline.graph.prepare import prepare as planned
from tersor.pipeline.graph.rewriting import wants_equalization, wants_smoothing
from tersor.recipe import Quantize, Recipe, resolve
from tersor.task import Arguments, Task
from tersor.turns import in_turn


@dataclass(frozen=True)
class Goal:
    """The target of a recording, as arguments of ``compress``, and whether its plan needs data."""

    recipe: Recipe
    engine: str
    target: str | None
    threads: int | None
    precision: str
    needs_data: bool


class Recording(nn.Module):
    """The float model, which records its inputs: ``prepare`` returns it and ``convert`` takes it.

    Call it like the model; it returns the model's output. A copy of every input is kept in memory, on the input's
    device, for the lifetime of this object: 512 images of 3 × 224 × 224 take 308 MB. For more data, give
    ``tersor.compress`` a Task, which streams.

    Raises:
        CalibrationError: a batch that differs in structure from the example, or holds NaN or infinity; not recorded.
        TaskError: arguments with another structure than the example's.
    """

    def __init__(self, task: Task, goal: Goal) -> None:
        super().__init__()
        self.model, self.example, self.goal = task.model, task.example, goal
        self.training = task.model.training
        self._batches: list[Arguments] = []

    @property
    def task(self) -> Task:
        """The model with the recorded batches as its calibration data."""
        batches = tuple(self._batches)
        return Task(type(self.model).__name__, self.model, self.example, lambda: batches)

    @property
    def samples(self) -> int:
        """The number of recorded samples: the sum of the batch sizes."""
        return self.task.samples() if self._batches else 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output; the arguments are recorded."""
        if args and kwargs:
            raise TaskError("called with positional and keyword arguments; give all in the form of the example")
        batch = kwargs or args
        unknown = [name for name in kwargs if isinstance(self.example, Mapping) and name not in self.example]
        if unknown:
            raise TaskError(f"called with {unknown}, which the example lacks; add them to the example, or omit them")
        self.task.checked(batch, len(self._batches))
        # Copy before the call, since a model may modify its input in place; a tensor made in inference mode could not
        # be modified outside it.
        with torch.inference_mode(False):
            kept = pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, batch)
        output = self.model(*args, **kwargs)
        self._batches.append(kept)
        return output


@in_turn
def prepare(
    model: nn.Module,
    recipe: Recipe | str | Path = "int8-static",
    example: Arguments = (),
    *,
    engine: str = "openvino",
    target: str | None = None,
    threads: int | None = None,
    precision: str = "f32",
) -> Recording:
    """Wrap a model so that it records its inputs: run calibration data through it, then ``convert`` it.

    The model is captured and planned once here, so that everything except the data is checked before data is run. It
    is neither changed nor copied: ``convert`` uses the model's state at that time. ``compress`` does the same in one
    call, measures the result, and keeps no data.

    Args:
        model: the trained network in eval mode.
        recipe, engine, target, threads, precision: as in ``compress``.
        example: the arguments of one call, as a tuple, or a dict of keyword arguments.

    Raises:
        TersorError: as in ``compress``, for the model, the example, the recipe and the engine.

    >>> import torch, tersor
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
    >>> prepared = tersor.prepare(net, example=(torch.zeros(1, 3, 8, 8),), engine="torch")
    >>> for k in range(4):
    ...     _ = prepared(torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(k)))
    >>> prepared.samples
    64
    >>> done = tersor.convert(prepared)
    >>> done(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 8, 6, 6])
    """
    task, recipe = Task(type(model).__name__, model, example, tuple), resolve(recipe)
    check_options(None if engine == "auto" else find_engine(engine), threads, precision)
    # ``auto`` has no policy; the simulation's policy accepts everything that one of its engines accepts.
    policy = (simulation() if engine == "auto" else find_engine(engine)).policy(target)
    needs_data = _needs_data(recipe.quantize, planned(task, recipe, policy))
    return Recording(task, Goal(recipe, engine, target, threads, precision, needs_data))


def prepare_qat(
    model: nn.Module,
    recipe: Recipe | str | Path = "int8-qat",
    example: Arguments = (),
    calibration: Iterable[Any] | Callable[[], Iterable[Any]] = (),
    *,
    engine: str = "openvino",
    target: str | None = None,
    progress: bool = True,
) -> Trainable:
    """The model as a student with calibrated quantizers, in training mode: train it, then ``convert`` it.

    It is ``tersor.trainable`` without a Task. The student is a plain ``nn.Module`` with copies of the model's
    parameters under their own names; the model is not changed.

    Args:
        model: the trained network in eval mode.
        recipe, engine, target: as in ``trainable``.
        example: the arguments of one call, as a tuple, or a dict of keyword arguments.
        calibration: some batches of the model's arguments, without labels, from which the first ranges come; or a
            function that returns them, if they are read from a generator.
        progress: show progress bars on a terminal.

    Raises:
        TersorError: as in ``trainable``, for the model, the example, the data, the recipe and the engine.

    >>> import torch, tersor
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
    >>> data = [(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    >>> student = tersor.prepare_qat(net, "int8-qat", (torch.zeros(1, 3, 8, 8),), data, engine="torch")
    >>> optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    >>> loss = student(data[0][0]).square().mean()
    >>> loss.backward(); optimizer.step()
    >>> tersor.convert(student)(data[0][0]).shape
    torch.Size([8, 8, 6, 6])
    """
    batches = calibration if callable(calibration) else lambda: calibration
    task = Task(type(model).__name__, model, example, batches)
    return trainable_task(task, recipe, engine, target=target, progress=progress)


@in_turn
def convert(prepared: Recording | Trainable, *, report: bool = False, progress: bool = True) -> Compressed:
    """Compress what ``prepare`` returned, calibrated with the recorded data; or a student, as it was trained.

    The result equals that of ``compress`` with the same batches, or with the student. ``prepared`` keeps its data: it
    can record more, or be trained on, and be converted again.

    Args:
        prepared: from ``prepare``; or from ``prepare_qat`` or ``trainable``, in either mode.
        report: True measures latency, memory and the error of every layer; there is a metric only if the task of
            ``trainable`` has one.
        progress: show progress bars on a terminal.

    Raises:
        CalibrationError: ``prepared`` has seen no data, and the recipe needs data.
        TersorError: as in ``compress``.
    """
    if isinstance(prepared, Trainable):
        return compress(prepared, report=report, progress=progress)
    check_not_wrapped(prepared, "convert")
    if not isinstance(prepared, Recording):
        raise TaskError(
            f"convert takes what tersor.prepare or tersor.prepare_qat returned, got {type(prepared).__name__}"
        )
    goal, task = prepared.goal, prepared.task
    if not prepared.samples and goal.needs_data:
        raise CalibrationError(
            f"the prepared {task.name} has seen no data, and the recipe {goal.recipe.name} needs some: call it on "
            "100 to 1,000 samples, as you call the model, before convert"
        )
    data = task if prepared.samples else replace(task, calibration=lambda: [task.example])
    return compress(
        data,
        goal.recipe,
        goal.engine,
        target=goal.target,
        threads=goal.threads,
        precision=goal.precision,
        report=report,
        progress=progress,
    )


def _needs_data(step: Quantize, found: Prepared) -> bool:
    """Whether the result depends on calibration data."""
    wanted = step.bias_correction or wants_equalization(step, found.plan) or wants_smoothing(step, found)
    return wanted or bool(found.plan.activations()) or any(s.asked.choice().needs for s in found.plan.weights())
