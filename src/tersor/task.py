"""The Task: a network, its calibration data and its evaluation."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.errors import CalibrationError, TaskError
from tersor.former_names import takes_former_name
from tersor.numerics import all_finite

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
        calibration: a function returning an iterable of argument tuples (or dicts) like ``example``.
            It is called once for each pass, and its batches are streamed.
        evaluate: ``evaluate(predict)`` returns the metric as a float, or the scores of all samples
            (1-D), whose mean is the metric. ``predict`` is called like the model.
        metric: the name of the metric.
        higher_is_better: the direction of the metric.
        token_mask: for padded batches: ``token_mask(*inputs)`` returns bool [batch, length], True for real positions.
            Solvers that calibrate linear weights on a layer's inputs leave the others out (convolutions do not).
            The former name ``counted`` is still taken.
        dynamic: dimensions that may vary between calls besides the batch, for each argument by its name:
            ``{"ids": {1: "length"}}`` frees the second dimension of ``ids``. The example must have at least 2 there.
            Recurrent layers run in OpenVINO and ONNX Runtime with a fixed length only.

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
    token_mask: Callable[..., Tensor] | None = None
    dynamic: Mapping[str, Mapping[int, str]] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TaskError(f"Task.model must be a torch.nn.Module, got {type(self.model).__name__}")
        if not isinstance(self.example, (tuple, list, Mapping)) or not self.example:
            raise TaskError(
                "Task.example must be a non-empty tuple of positional arguments or a dict of keyword "
                f"arguments, got {type(self.example).__name__}; for one tensor write example=(x,)"
            )
        if not callable(self.calibration):
            raise TaskError(
                "Task.calibration must be a function that returns an iterable of batches, got "
                f"{type(self.calibration).__name__}; a list is passed as `lambda: batches`. A generator "
                "object can be read only once, a function that makes one can be read again"
            )
        if self.evaluate is not None and not callable(self.evaluate):
            raise TaskError("Task.evaluate must be a function of `predict`")
        for name, dims in (self.dynamic or {}).items():
            if not isinstance(dims, Mapping) or not all(type(k) is int and k > 0 for k in dims):
                raise TaskError(
                    f'Task.dynamic of {name} is {dims!r}: write {{"{name}": {{1: "length"}}}}, the dimension and a '
                    "name for its size; dimension 0, the batch, varies anyway"
                )

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
        if isinstance(batch, Tensor):
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
            raise TaskError("the example is positional, the batch is a dict: give both in the same form")
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
        empty = True
        for number, batch in enumerate(self.calibration()):
            empty = False
            yield self.checked(batch, number)
        if empty:
            raise CalibrationError(
                "calibration() yielded no batch. Either the data is empty, or it is a generator that was "
                "read before: let calibration be a function that makes a fresh iterable at every call"
            )

    def checked(self, batch: Any, number: int) -> tuple[Tensor, ...]:
        """The tensors of calibration batch ``number``, checked against the example.

        Raises:
            CalibrationError: naming the batch, the argument and the value.
        """
        inputs = pytree.tree_leaves(self.arguments(batch))
        _check_batch(inputs, pytree.tree_leaves(self.arguments(self.example)), number)
        return tuple(x for x in inputs if isinstance(x, Tensor))

    def samples(self) -> int:
        """The number of samples of one calibration pass (the first dimension of the first tensor)."""
        return sum(batch_size(inputs) for inputs in self.calibration_batches())


def batch_size(inputs: tuple[Any, ...]) -> int:
    """The first dimension of the first tensor among ``inputs``; 1 if no tensor has a dimension."""
    return next((int(x.shape[0]) for x in inputs if isinstance(x, Tensor) and x.ndim), 1)


def _check_batch(inputs: list[Any], example: list[Any], number: int) -> None:
    where = f"calibration batch {number}"
    if len(inputs) != len(example):
        raise CalibrationError(
            f"{where} has {len(inputs)} arguments, the example has {len(example)}; a batch is the tuple of "
            "the model's arguments, without labels"
        )
    for k, (x, e) in enumerate(zip(inputs, example, strict=True)):
        if not isinstance(e, Tensor):
            if isinstance(x, Tensor) or x != e:
                raise CalibrationError(
                    f"{where}, argument {k}: {x!r}, the example has {e!r}; a value that is not a tensor becomes "
                    "a constant of the captured network and must be the same in every batch"
                )
            continue
        if not isinstance(x, Tensor):
            raise CalibrationError(f"{where}, argument {k}: expected a tensor, got {type(x).__name__}")
        if x.dtype != e.dtype:
            raise CalibrationError(
                f"{where}, argument {k}: dtype {x.dtype}, the example has {e.dtype}; convert one of them"
            )
        if x.ndim != e.ndim:
            raise CalibrationError(
                f"{where}, argument {k}: shape {tuple(x.shape)} has {x.ndim} dimensions, the example "
                f"{tuple(e.shape)} has {e.ndim}"
            )
        if x.ndim == 4 and x.shape[1] != e.shape[1]:
            raise CalibrationError(
                f"{where}, argument {k}: {x.shape[1]} channels in shape {tuple(x.shape)}, the example "
                f"{tuple(e.shape)} has {e.shape[1]}"
            )
        if x.is_floating_point() and not all_finite(x):
            raise CalibrationError(
                f"{where}, argument {k}: {int((~torch.isfinite(x)).sum())} values are NaN or infinite; "
                "clean the calibration data"
            )
