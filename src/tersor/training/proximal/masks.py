"""Masks of weights that stay zero while others train."""

from typing import Any

import torch
from torch import Tensor

from tersor.errors import RecipeError, TaskError
from tersor.numerics import QuantSpec


def check_mask(keep: Tensor, shape: torch.Size) -> None:
    """Raise TaskError unless ``keep`` has a bool for each weight of ``shape``."""
    if keep.dtype != torch.bool or keep.shape != shape:
        raise TaskError(
            f"a mask of {keep.dtype} and shape {tuple(keep.shape)} does not fit the shape {tuple(shape)}: "
            "give a bool for each weight"
        )


def check_zero(spec: QuantSpec) -> None:
    """Raise RecipeError if codes of ``spec`` have no zero to mask with."""
    if spec.format.name == "binary":
        raise RecipeError("binary weights cannot be masked, there is no zero among them: use ternary")


def clear(parameter: Tensor, gone: Tensor, state: dict[str, Any]) -> None:
    """Make weights and what an optimizer keeps for them (momentum, moments) zero where ``gone`` is True, in place.

    >>> weight, state = torch.ones(3), {"step": torch.tensor(4.0), "momentum_buffer": torch.ones(3)}
    >>> clear(weight, torch.tensor([False, True, False]), state)
    >>> weight, state["momentum_buffer"]
    (tensor([1., 0., 1.]), tensor([1., 0., 1.]))
    """
    parameter.masked_fill_(gone, 0)
    for key, value in state.items():
        if key != "step" and isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(gone, 0)
