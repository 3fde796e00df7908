"""The Task: a network, its calibration data and its evaluation, all checked on entry."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.errors import CalibrationError, TaskError
from tersor.former_names import takes_former_name
from tersor.task.calibration import Passes, batch_size, check_batch, check_count, read, with_tensors
from tersor.task.fields import check_fields

__all__ = ["Arguments", "Predict", "Task", "batch_size", "check_task"]

Arguments = tuple[Any, ...] | Mapping[str, Any]
Predict = Callable[..., Any]


@takes_former_name("counted", "token_mask")
@dataclass(frozen=True)
class Task:
    """One network, an example of its input, calibration data and an evaluation.

    Args:
        name: the name in the report.
        model: the trained network in eval mode; it is not changed.
        example: the arguments of one call: a tuple, or a dict of keyword arguments. The first
            dimension of every tensor is the batch and stays dynamic.
        calibration: a function returning an iterable of argument tuples (or dicts) like ``example``, of tensors or
            NumPy arrays. It is called once for each pass, and its batches are streamed.
        evaluate: ``evaluate(predict)`` returns the metric as a float, or the scores of all samples
            (1-D, bools count as 1 and 0), whose mean is the metric. ``predict`` is called like the model; the
            model itself may not be changed.
        metric: the name of the metric.
        higher_is_better: the direction of the metric.
        train: for recipes that train: ``train()`` yields batches, in a new order at each call if it draws from
            PyTorch's, NumPy's or Python's global generator. Without ``loss`` a batch is the model's arguments.
        loss: ``loss(model, batch)`` returns a scalar. Without it the network learns from its FP32 self alone.
        validation: held-out batches of the same form, by whose loss trained networks are compared. Without it, by the
            difference from the teacher on the calibration data, or the loss on the first batches of ``train()``.
        optimizer: ``optimizer(named_parameters)`` returns a torch optimizer, in place of the recipe's.
        teacher: what the network learns from; None: its FP32 self. It takes the same arguments.
        token_mask: for padded batches: ``token_mask(*inputs)`` returns bool [batch, length], True for real positions.
            Solvers that calibrate linear weights on a layer's inputs omit the other positions (convolutions do not).
            The former name ``counted`` is still accepted.
        dynamic: dimensions that may vary between calls besides the batch, for each argument by its name:
            ``{"ids": {1: "length"}}`` frees the second dimension of ``ids``. The example must have at least 2 there.
            Recurrent layers run in OpenVINO and ONNX Runtime with a fixed length only.
        max_samples: the limit of one pass over ``calibration``; more raise a CalibrationError. By default 4,096
            for an iterable without a length, which may be endless, and no bound for others.

    Raises:
        TaskError: a field that cannot be used, with the remedy; or both ``token_mask`` and ``counted``.

    >>> import torch
    >>> net = torch.nn.Linear(4, 2).eval()
    >>> task = Task("tiny", net, (torch.zeros(1, 4),), lambda: [(torch.ones(8, 4),)])
    >>> task.arguments(task.example)
    (tensor([[0., 0., 0., 0.]]),)
    """

    name: str
    model: nn.Module
    example: Arguments
    calibration: Callable[[], Iterable[Arguments]]
    evaluate: Callable[[Predict], Any] | None = None
    metric: str = "score"
    higher_is_better: bool = True
    loss: Callable[..., Tensor] | None = None
    train: Callable[[], Iterable[Any]] | None = None
    validation: Callable[[], Iterable[Any]] | None = None
    optimizer: Callable[..., Any] | None = None
    teacher: nn.Module | None = None
    token_mask: Callable[..., Tensor] | None = None
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    max_samples: int | None = None
    _passes: Passes = field(default_factory=Passes, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def counted(self) -> Callable[..., Tensor] | None:
        """The former name of ``token_mask``."""
        return self.token_mask

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of keyword inputs, or ``()`` when the example is positional."""
        return tuple(self.example) if isinstance(self.example, Mapping) else ()

    def arguments(self, batch: Any) -> tuple[Any, ...]:
        """One batch as the flat tuple of inputs, keyword inputs in the order of the example."""
        names = self.input_names
        if isinstance(batch, (Tensor, np.ndarray)):
            batch = (batch,)
        if names:
            if not isinstance(batch, Mapping):
                raise TaskError(
                    f"the example has keyword arguments {list(names)}, the batch is a {type(batch).__name__}"
                )
            missing = [n for n in names if n not in batch]
            if missing:
                raise TaskError(f"the batch lacks the keyword arguments {missing} of the example")
            return tuple(batch[n] for n in names)
        if isinstance(batch, Mapping):
            raise TaskError(
                f"the example is positional, the batch is a dict of {', '.join(map(str, batch))}: give both in the "
                "same form, for a model that takes keywords as dicts"
            )
        if not isinstance(batch, (tuple, list)):
            raise TaskError(
                f"a batch must be the tuple of the model's arguments, got {type(batch).__name__}; for one tensor "
                "write (x,)"
            )
        return tuple(batch)

    def calibration_batches(self) -> Iterator[tuple[Tensor, ...]]:
        """One pass over the calibration data; every batch is checked against the example.

        Yields the tensors of each batch, in order; other values are constants of the captured network.

        Raises:
            CalibrationError: naming the batch, the argument and the value.
        """
        batches, sized = read(self.calibration, self._passes)
        samples = 0
        for number, batch in enumerate(batches):
            inputs = self.checked(batch, number)
            samples += batch_size(inputs)
            check_count(samples, self.max_samples, sized)
            yield inputs
        if not samples:
            raise CalibrationError(
                "calibration() yielded no batch. Either the data is empty, or it is a generator that was "
                "read before: let calibration be a function that makes a fresh iterable at every call"
            )

    def checked(self, batch: Any, number: int) -> tuple[Tensor, ...]:
        """The tensors of calibration batch ``number``, checked against the example.

        Raises:
            CalibrationError: naming the batch, the argument and the value.
        """
        example = pytree.tree_leaves(self.arguments(self.example))
        inputs = with_tensors(pytree.tree_leaves(self.arguments(batch)), example, number)
        check_batch(inputs, example, number)
        return tuple(x for x in inputs if isinstance(x, Tensor))

    def samples(self) -> int:
        """The number of samples of one calibration pass (the first dimension of the first tensor)."""
        return sum(batch_size(inputs) for inputs in self.calibration_batches())


def check_task(task: Any, who: str) -> None:
    """Refuse what is no Task.

    Args:
        who: the function that was given it.

    Raises:
        TaskError: with what to give instead.
    """
    if isinstance(task, nn.Module):
        raise TaskError(
            f"{who} got a {type(task).__name__}, the model alone: give tersor.Task(name, model, (example,), "
            "lambda: batches), which has the data to calibrate on"
        )
    if not isinstance(task, Task):
        raise TaskError(f"{task!r:.80} is not a tersor.Task; for a language model's folder, use tersor.compress_folder")
