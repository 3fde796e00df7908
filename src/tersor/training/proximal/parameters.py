"""The parameters of an optimizer by number and name, and checks of what is given for them."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tersor.errors import CheckpointError, RecipeError, TaskError, TersorError

Groups = list[dict[str, Any]]


def parameters_of(groups: Groups) -> Iterator[Tensor]:
    """All parameters, in the order in which ``state_dict`` numbers them."""
    return (parameter for group in groups for parameter in group["params"])


def name_in(groups: Groups, parameter: Tensor) -> str:
    """Its name if the optimizer got ``named_parameters()``, else its number.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2)
    >>> for given in (layer.named_parameters(), layer.parameters()):
    ...     print(name_in(torch.optim.SGD(given).param_groups, layer.bias))
    bias
    parameter 1
    """
    names = [name for group in groups for name in group.get("param_names", [])]
    number = next(k for k, own in enumerate(parameters_of(groups)) if own is parameter)
    return names[number] if names else f"parameter {number}"


def rate_of(groups: Groups, parameter: Tensor) -> float:
    """The learning rate at which a parameter starts, before any scheduler; raises RecipeError if it is 0."""
    (group,) = (group for group in groups if any(own is parameter for own in group["params"]))
    rate = float(group.get("initial_lr", group["lr"]))
    if rate <= 0:
        raise RecipeError(f"the learning rate is {rate:g}: a penalty in units of it needs a positive one")
    return rate


def trained_name(groups: Groups, parameter: Tensor) -> str:
    """The name of a parameter that the optimizer trains; raises TaskError for others and for frozen ones."""
    if not any(own is parameter for own in parameters_of(groups)):
        raise TaskError(f"a parameter of shape {tuple(parameter.shape)} is not the optimizer's: add it first")
    name = name_in(groups, parameter)
    if not parameter.requires_grad:
        raise TaskError(f"{name} is frozen: set requires_grad, or leave it out")
    return name


@contextmanager
def naming(groups: Groups, parameter: Tensor) -> Iterator[None]:
    """Put the name of a parameter before the errors of what is done with it."""
    try:
        yield
    except TersorError as error:
        raise type(error)(f"{name_in(groups, parameter)}: {error}") from error


def check_inner(inner: torch.optim.Optimizer) -> None:
    """Raise RecipeError for an optimizer that needs several gradients a step, and for one that maximizes."""
    closure = inspect.signature(inner.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise RecipeError(f"{type(inner).__name__} computes several gradients a step: use SGD or Adam")
    if any(group.get("maximize") for group in inner.param_groups):
        raise RecipeError("the optimizer has maximize=True: minimize the negative loss instead")


def check_saved(part: dict[str, Any], kind: str, shape: torch.Size) -> None:
    """Check the saved state of one parameter.

    Args:
        part: masks, targets and duals, and the ``kind`` of what they belong to.
        kind: what the parameter is trained towards now.
        shape: of the parameter.

    Raises:
        CheckpointError: the state is of another set, or of another shape.
    """
    if part.get("kind", "") != kind:
        one, other = (text or "nothing" for text in (part.get("kind", ""), kind))
        raise CheckpointError(f"the state is of {one}, the optimizer has {other}: resume with the same recipe")
    held = {**part, **part.get("admm", {})}
    for key in ("keep", "origin", "codes", "dual"):
        if key in held and held[key].shape != shape:
            raise CheckpointError(f"its {key} has shape {tuple(held[key].shape)}, the parameter {tuple(shape)}")
