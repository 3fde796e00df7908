"""The parts of a recipe that a host supports: declared next to the host, checked before anything runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from pydantic import BaseModel

from tersor.errors import RecipeError
from tersor.recipe.recipe import Recipe
from tersor.recipe.rules import Rule
from tersor.recipe.steps import Step


@dataclass(frozen=True)
class Capabilities:
    """The steps and options that a host supports; all others are rejected by name.

    Args:
        host: its name in errors.
        takes: for each step by name, the keys supported in the step and in its rules.
        reasons: by key, why it is not supported.

    >>> some = Capabilities("a toy", {"quantize": frozenset({"weights", "rules"})}, {"awq": "is for folders"})
    >>> some.check(Recipe(name="mine", awq=True))
    Traceback (most recent call last):
    ...
    tersor.errors.RecipeError: `awq` of the recipe mine is for folders; leave it out
    """

    host: str
    takes: Mapping[str, frozenset[str]]
    reasons: Mapping[str, str] = field(default_factory=dict)

    def check(self, recipe: Recipe) -> None:
        """Reject anything that the host does not support.

        Raises:
            RecipeError: naming the step or the key, and why.
        """
        for step in recipe.steps:
            if step.name not in self.takes:
                able = ", ".join(f"`{name}`" for name in self.takes)
                raise RecipeError(
                    f"the step `{step.name}` of the recipe {recipe.name} is not taken by {self.host}, which takes "
                    f"{able}; leave it out"
                )
            for key, value, rule in _asked(step):
                if key not in self.takes[step.name]:
                    long = isinstance(value, (bool, BaseModel, dict)) or is_dataclass(value)
                    shown = key if long else f"{key}: {value}"
                    where = "" if rule is None else f" of the rule ({rule})"
                    why = self.reasons.get(key, f"is not taken by {self.host}")
                    raise RecipeError(f"`{shown}`{where} of the recipe {recipe.name} {why}; leave it out")


def _asked(step: Step) -> Iterator[tuple[str, Any, Rule | None]]:
    """Every option that differs from the default: key, value, and the rule that names it."""
    for key, about in type(step).model_fields.items():
        value = getattr(step, key)
        rules = [item for item in value if isinstance(item, Rule)] if isinstance(value, tuple) else []
        for rule in rules:
            for name, change in rule.changes.items():
                if change is not None:
                    yield name, change, rule
        nothing = value is None or value is False or value == "off"
        if not nothing and value != about.get_default(call_default_factory=True):
            yield key, value, None
