"""What a training minimizes: the task's loss, distillation from a teacher, or both."""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import TaskError
from tersor.training.data import leaves_of
from tersor.training.losses import Distillation
from tersor.training.losses.features import Arguments
from tersor.user_code import users

Loss = Callable[[Any, Any], Tensor]
# What to do about a batch that is not the model's arguments.
ALONE = (
    "give Task.loss, a function loss(model, batch), or yield the arguments alone, such as "
    "`train=lambda: ((x,) for x, label in loader)`"
)
NO_GRADIENT = (
    "loss(model, batch) returned a value without a gradient: let it depend on the model's output, without no_grad, "
    "detach, argmax or item"
)


class Objective:
    """The loss of a batch.

    Without ``loss``, a batch is the model's arguments, and the loss is that of the distillation. With both, ``loss``
    is called with the model, whose calls the distillation listens to.

    Args:
        loss: the task's ``loss(model, batch)``, or None.
        distillation: losses between student and teacher, or None.
        names: of the keyword arguments, if the example has them.

    Raises:
        TaskError: neither is given.
    """

    def __init__(self, loss: Loss | None, distillation: Distillation | None, names: tuple[str, ...] = ()) -> None:
        if loss is None and distillation is None:
            raise TaskError(
                "there is nothing to learn: give Task(loss=…), a function loss(model, batch), or let the step `train` "
                "distill from a teacher (`distill: auto`)"
            )
        self.loss, self.distillation, self.names = loss, distillation, names

    def listening(self) -> AbstractContextManager[Any]:
        """The context in which the student runs."""
        return nullcontext() if self.distillation is None else self.distillation

    def to(self, device: torch.device) -> None:
        """Move the teacher and the projections between layers to where the student trains."""
        if self.distillation is not None:
            self.distillation.to(device)
            self.distillation._networks[1].to(device)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss, a scalar with a gradient.

        Raises:
            TaskError: ``loss`` raises or returns something else, or the batch is not the model's arguments.
        """
        if self.loss is None:
            assert self.distillation is not None
            output, inputs = self._output(model, batch)
            return self.distillation(output, inputs)
        if self.distillation is None:
            return self.of_task(model, batch)
        heard = Listener(model, self.distillation, batch)
        own = self.of_task(heard, batch)
        if not heard.taught:
            raise TaskError("loss(model, batch) never called the model: distillation needs its output")
        return self.distillation.task_share * own + torch.stack(heard.taught).sum()

    def of_task(self, model: nn.Module, batch: Any, source: str = "train()") -> Tensor:
        """The task's own loss, a scalar; with a gradient while the model trains.

        Args:
            source: the function of the task that yielded the batch.

        Raises:
            TaskError: it raises, or returns something else.
        """
        assert self.loss is not None
        with users("loss(model, batch)", TaskError, f"call it on a batch of {source} to debug it"):
            own = self.loss(model, batch)
        if not isinstance(own, Tensor) or own.numel() != 1 or own.is_complex():
            found = f"the shape {list(own.shape)}" if isinstance(own, Tensor) else f"a {type(own).__name__}"
            raise TaskError(f"loss(model, batch) returned {found}: return a scalar that depends on the model's output")
        if model.training and torch.is_grad_enabled() and not own.requires_grad:
            raise TaskError(NO_GRADIENT)
        return own.reshape(())

    def run(self, model: nn.Module, batch: Any) -> None:
        """Run the model on a batch, without a teacher."""
        if self.loss is None:
            self._output(model, batch)
        else:
            self.of_task(model, batch)

    def _output(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        inputs = arguments_of(batch, self.names)
        with users("the network", TaskError, "let train() yield batches like Task.example"):
            return (model(**inputs) if isinstance(inputs, dict) else model(*inputs)), inputs


class Passing(nn.Module):
    """A module around another one, which has that one's mode and attributes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.training = model.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class Listener(Passing):
    """The model, with the loss of the distillation of every call."""

    def __init__(self, model: nn.Module, distillation: Distillation, batch: Any) -> None:
        super().__init__(model)
        # In a tuple, for a submodule's parameters would be this module's. The loss may take labels out of its batch.
        kept = copy.copy(batch) if isinstance(batch, (list, Mapping)) else batch
        self._distillation, self._batch, self.taught = (distillation,), kept, list[Tensor]()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result."""
        output = self.inner(*args, **kwargs)
        inputs = Arguments(args, kwargs)
        self.taught.append(self._distillation[0](output, inputs, labels_of(self._batch, (args, kwargs))))
        return output


def arguments_of(batch: Any, names: tuple[str, ...]) -> tuple[Any, ...] | dict[str, Any]:
    """A batch as the model's arguments.

    Raises:
        TaskError: it has another form than the example.

    >>> arguments_of([1, 2], ())
    (1, 2)
    """
    if names:
        if not isinstance(batch, Mapping) or any(name not in batch for name in names):
            raise TaskError(
                f"train() yielded a {type(batch).__name__}: without Task.loss a batch is the model's arguments, here a "
                f"dict of {', '.join(names)}: give Task.loss, a function loss(model, batch), or yield them alone"
            )
        return {name: batch[name] for name in names}
    if isinstance(batch, Tensor):
        return (batch,)
    if not isinstance(batch, (tuple, list)):
        raise TaskError(
            f"train() yielded a {type(batch).__name__}: without Task.loss a batch is the tuple of the model's "
            f"arguments: {ALONE}"
        )
    return tuple(batch)


def labels_of(batch: Any, inputs: Any) -> Tensor | None:
    """The labels of a batch, for losses that read them: its only integer tensor that the model did not get, or None.

    >>> import torch
    >>> x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    >>> labels_of((x, y), (x,)) is y, labels_of((x, y, y + 1), (x,)), labels_of((x, y), (x, y))
    (True, None, None)
    """
    given = {id(leaf) for leaf in leaves_of(inputs)}
    found = [
        leaf
        for leaf in leaves_of(batch)
        if isinstance(leaf, Tensor) and id(leaf) not in given and not leaf.is_floating_point()
    ]
    return found[0] if len(found) == 1 else None
