"""Checks of the options ``sparsity`` and ``pruner``."""

from typing import Any

from tersor.errors import RecipeError
from tersor.solvers import PRUNERS, Sparsity
from tersor.tables import Named, checked, parsed


def known_sparsity(value: str | None) -> str | None:
    """The text, if it is a sparsity.

    Raises:
        ValueError: naming the three forms.

    >>> known_sparsity("2:4")
    '2:4'
    """
    try:
        if value is not None:
            Sparsity.parse(value)
    except RecipeError as error:
        raise ValueError(str(error)) from error
    return value


def known_pruner(value: Any) -> Named | None:
    """The name of a pruner, alone or with its options, if the table has it.

    Raises:
        ValueError: naming the pruners, or the options.

    >>> known_pruner({"sparsegpt": {"damping": 0.02}})
    {'sparsegpt': {'damping': 0.02}}
    """
    try:
        return None if value is None else checked(PRUNERS, parsed(value, "pruner"), "pruner")
    except RecipeError as error:
        raise ValueError(str(error)) from error
