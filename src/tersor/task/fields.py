"""The fields of a Task, checked when it is created."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.arguments import whole
from tersor.errors import TaskError
from tersor.numerics import all_finite


def check_model(model: Any) -> None:
    """It is a module."""
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise TaskError(f"Task.model must be a torch.nn.Module, got the class {model.__name__}: give an instance of it")
    if isinstance(model, Mapping):
        raise TaskError(
            f"Task.model is a {type(model).__name__}, which looks like a state_dict: load it into the model, "
            "model.load_state_dict(…), and give the model"
        )
    if not isinstance(model, nn.Module):
        raise TaskError(f"Task.model must be a torch.nn.Module, got {type(model).__name__}")


def check_text(field: str, value: Any) -> None:
    """It is a text that a report can print."""
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"Task.{field} is {value!r:.80}: it must be a text, which the report prints")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TaskError(f"Task.{field} is {value!a:.80}, with half of a character: give another text") from None


def check_direction(value: Any) -> None:
    """It is True or False."""
    if not isinstance(value, bool):
        raise TaskError(f"Task.higher_is_better is {value!r:.80}: it must be True or False")


def check_function(field: str, value: Any, arguments: int | None, form: str) -> None:
    """It can be called with this number of arguments; None: with any."""
    if not callable(value) or isinstance(value, nn.Module):
        raise TaskError(f"Task.{field} must be a function {form}, got {type(value).__name__}")
    if arguments is None:
        return
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):  # as with some functions written in C
        return
    try:
        signature.bind(*range(arguments))
    except TypeError as error:
        raise TaskError(f"Task.{field} must be a function {form}: {field}{signature} takes other arguments") from error


def check_batches(field: str, value: Any) -> None:
    """It is a function of no argument that makes batches."""
    if not callable(value):
        raise TaskError(
            f"Task.{field} must be a function that returns an iterable of batches, got {type(value).__name__}; a list "
            "or DataLoader is passed as `lambda: loader`. A generator object can be read only once, a function that "
            "makes one can be read again"
        )
    check_function(field, value, 0, "without arguments that returns an iterable of batches")


def check_example(example: Any) -> None:
    """It is the arguments of one call, with tensors whose values are finite."""
    if not isinstance(example, (tuple, list, Mapping)) or not example:
        raise TaskError(
            "Task.example must be a non-empty tuple of positional arguments or a dict of keyword "
            f"arguments, got {type(example).__name__}; for one tensor write example=(x,)"
        )
    if isinstance(example, Mapping) and (odd := next((k for k in example if not isinstance(k, str)), None)) is not None:
        raise TaskError(f"Task.example has the key {odd!r:.80}: keys of a dict are the names of the model's arguments")
    values = dict(example) if isinstance(example, Mapping) else dict(enumerate(example))
    for name, value in values.items():
        for leaf in pytree.tree_leaves(value):
            _check_leaf(f"Task.example, argument {name}", leaf)
    if not any(isinstance(x, Tensor) for x in pytree.tree_leaves(values)):
        found = ", ".join(dict.fromkeys(type(v).__name__ for v in values.values()))
        raise TaskError(f"Task.example holds no tensor but {found}: give the tensors that the model is called with")


def _check_leaf(where: str, leaf: Any) -> None:
    if isinstance(leaf, np.ndarray):
        raise TaskError(f"{where} is a numpy array: give a tensor, torch.from_numpy(x)")
    if not isinstance(leaf, Tensor) or leaf.is_meta:
        return
    if leaf.layout != torch.strided:
        raise TaskError(f"{where} has the layout {leaf.layout}: give a dense tensor, x.to_dense()")
    if 0 in leaf.shape:
        raise TaskError(f"{where} has the shape {tuple(leaf.shape)}, without a value: give at least one row")
    if (leaf.is_floating_point() or leaf.is_complex()) and leaf.dtype.itemsize > 1 and not all_finite(leaf):
        count = int((~torch.isfinite(leaf)).sum())
        raise TaskError(f"{where}: {count} of {leaf.numel()} values are NaN or infinite; give finite ones")


def check_dynamic(value: Any) -> None:
    """It names dimensions of arguments."""
    if value is None:
        return
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TaskError(
            f'Task.dynamic is {value!r:.80}: write {{"ids": {{1: "length"}}}}, the argument, its dimension and a name '
            "for its size"
        )
    for name, dims in value.items():
        if not isinstance(dims, Mapping) or not all(type(k) is int and k > 0 for k in dims):
            raise TaskError(
                f'Task.dynamic of {name} is {dims!r}: write {{"{name}": {{1: "length"}}}}, the dimension and a '
                "name for its size; dimension 0, the batch, varies anyway"
            )
        if odd := [size for size in dims.values() if not isinstance(size, str) or not size.isidentifier()]:
            raise TaskError(f"Task.dynamic of {name} calls a size {odd[0]!r:.80}: write a name such as length")


def check_most(value: Any) -> None:
    """It is None or a number of samples."""
    if value is not None:
        whole("Task.max_samples", value, 1, None, "or None, for the default", TaskError)


# Optional functions of a task: how many arguments they are called with, and what they return.
OPTIONAL: dict[str, tuple[int | None, str]] = {
    "evaluate": (1, "of `predict`"),
    "loss": (2, "of the model and a batch that returns a scalar"),
    "optimizer": (1, "of the named parameters that returns a torch optimizer"),
    "token_mask": (None, "of the inputs that returns a bool tensor"),
}
def check_teacher(value: Any) -> None:
    """It is None or a module."""
    if value is not None and not isinstance(value, nn.Module):
        raise TaskError(f"Task.teacher is a {type(value).__name__}: give a torch.nn.Module, or None for the model")


CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": lambda value: check_text("name", value),
    "model": check_model,
    "example": check_example,
    "calibration": lambda value: check_batches("calibration", value),
    "train": lambda value: value is None or check_batches("train", value),
    "validation": lambda value: value is None or check_batches("validation", value),
    "metric": lambda value: check_text("metric", value),
    "higher_is_better": check_direction,
    "dynamic": check_dynamic,
    "max_samples": check_most,
    "teacher": check_teacher,
}


def check_fields(task: Any) -> None:
    """Check every field.

    Raises:
        TaskError: naming the field, the value and the remedy.
    """
    for field, check in CHECKS.items():
        check(getattr(task, field))
    for field, (arguments, form) in OPTIONAL.items():
        if (value := getattr(task, field)) is not None:
            check_function(field, value, arguments, form)
