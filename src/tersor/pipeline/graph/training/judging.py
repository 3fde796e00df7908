"""How networks are compared: by their loss on held-out data, the same data for all."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.errors import TaskError
from tersor.network.network import Network
from tersor.pipeline.graph.batches import cut, some
from tersor.task import Task, batch_size
from tersor.training.data import moved, same_draws
from tersor.training.losses import Outputs
from tersor.training.losses.auto import Auto
from tersor.training.losses.features import run
from tersor.training.objective import Objective
from tersor.user_code import users
from tersor.words import said

# Samples and batches by which networks are compared.
HELD_OUT, BATCHES = 512, 8
Judge = Callable[[nn.Module], float]


def judge_of(task: Task, network: Network, teacher: nn.Module, seed: int) -> tuple[Judge, str]:
    """The loss of a module on held-out data, lower is better, and what it is in words.

    Args:
        network: the captured one, whose batch may be fixed.
        seed: of everything random, drawn alike in each call.
    """
    if task.loss is None or (task.validation is None and task.train is None):
        return difference_from(task, network, teacher, seed), said(
            "the difference from the teacher on validation()" if task.validation else
            "the difference from the teacher on the calibration data"
        )
    objective, own = Objective(task.loss, None), task.validation or task.train
    assert own is not None
    name, limit = ("validation()", None) if task.validation else ("train()", BATCHES)

    def judge(model: nn.Module) -> float:
        where = _device(model)
        with same_draws(seed), torch.no_grad():
            batches = (moved(batch, where) for batch in islice(_read(own, name), limit))
            return _mean((objective.of_task(model, batch, name) for batch in batches), name)

    what = said("the task's loss on validation()") if task.validation else said(
        "the task's loss on the first batches of train()"
    )
    return judge, what


def difference_from(task: Task, network: Network, teacher: nn.Module, seed: int) -> Judge:
    """The difference of a module's outputs from the teacher's."""
    compare = Auto()

    def judge(model: nn.Module) -> float:
        where = _device(model)
        teacher.to(where)

        def differences() -> Iterator[Tensor]:
            for inputs in _held_out(task, network):
                given = _arguments(task, moved(inputs, where))
                yield compare(Outputs(run(model, given)), Outputs(run(teacher, given)))

        with same_draws(seed), torch.no_grad():
            return _mean(differences(), "validation()" if task.validation else "calibration()")

    return judge


class Silent(nn.Module):
    """Zeros where another module returns values; its difference from that module is the size of the values."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The zeros."""
        return pytree.tree_map_only(Tensor, torch.zeros_like, self.module(*args, **kwargs))


def _held_out(task: Task, network: Network) -> Iterator[Any]:
    batches: Iterator[Any] = some(task.calibration_batches(), HELD_OUT)
    if task.validation is not None:
        held_out = (task.arguments(batch) for batch in _read(task.validation, "validation()"))
        batches = (tuple(x for x in pytree.tree_leaves(b) if isinstance(x, Tensor)) for b in held_out)
    for inputs in batches:
        if network.dynamic_batch:
            yield inputs
        else:
            yield from (part for part, _ in cut(inputs, batch_size(network.example)))


def _arguments(task: Task, inputs: Iterable[Tensor]) -> Any:
    """The arguments of a call: those of the example, with these tensors."""
    example = dict(task.example) if task.input_names else tuple(task.example)
    leaves, structure = pytree.tree_flatten(example)
    tensors = iter(inputs)
    return pytree.tree_unflatten([next(tensors) if isinstance(x, Tensor) else x for x in leaves], structure)


def _read(function: Callable[[], Iterable[Any]], name: str) -> Iterator[Any]:
    with users(name, TaskError, f"iterate over {name} to debug it"):
        yield from function()


def _mean(values: Iterable[Tensor], name: str) -> float:
    found = [float(value) for value in values]
    if not found:
        function = name.removesuffix("()")
        raise TaskError(f"{name} yielded no batch: let {function} make a fresh iterable at every call")
    return sum(found) / len(found)


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
