"""The option `sparsity` of the step `train`: zeros that a network learns to live with."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator

from tersor.errors import TersorError
from tersor.recipe.quantization import Strict
from tersor.solvers import Sparsity
from tersor.solvers.weights import WEIGHT_SCORES
from tersor.tables import Named, checked, found, name_of, parsed
from tersor.training.sparse.growth import GROWTH


def _patterns(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Sparsify(Strict):
    """Which weights become zero while a network trains, and when; they stay zero to the end and in later steps.

    Args:
        share: of the weights that are zero in the end, such as 0.9.
        pattern: instead of it ``2:4``: of every 4 neighbouring inputs 2 stay.
        schedule: an entry of ``tersor.training.sparse.GROWTH``: how the share grows.
        start: the share of all steps at which the first weights go; recipes write ``from``.
        until: the share of all steps at which the last ones go; the rest of the training recovers.
        every: steps between two choices; None: 40 choices.
        score: an entry of ``tersor.solvers.weights.WEIGHT_SCORES``, but not ``wanda``.
        scope: one threshold for the weights of all layers (``global``), or the same share of each (``layer``).
        regrow: the share of the kept weights that is exchanged in each choice: the smallest go, those of the largest
            gradients come back at 0 (RigL, arXiv 1911.11134). It falls to 0 by a cosine.
        rewind: when the zeros are complete, take the weights back to the start, or to the end of so many epochs, and
            train again with the zeros (arXiv 1912.05671).
        layers: patterns of the names of layers that lose weights; empty: all.
        keep: patterns of layers that lose none.

    Raises:
        ValueError: options that contradict each other.

    >>> Sparsify.model_validate({"share": 0.9, "from": 0.1}).start
    0.1
    """

    share: float | None = Field(default=None, gt=0, lt=1)
    pattern: str | None = None
    schedule: Named = "cubic"
    start: float = Field(default=0.0, ge=0, lt=1, validation_alias=AliasChoices("from", "start"))
    until: float = Field(default=0.7, gt=0, le=1)
    every: int | None = Field(default=None, ge=1)
    score: Named = "magnitude"
    scope: Literal["global", "layer"] = "global"
    regrow: float = Field(default=0.0, ge=0, lt=1)
    rewind: bool | Annotated[int, Field(ge=1)] = False
    layers: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()
    keep: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()

    @field_validator("schedule", mode="before")
    @classmethod
    def _known_schedule(cls, value: Any) -> Named:
        return _checked(GROWTH, value, "schedule")

    @field_validator("score", mode="before")
    @classmethod
    def _known_score(cls, value: Any) -> Named:
        named = _checked(WEIGHT_SCORES, value, "score")
        if "norms" in found(WEIGHT_SCORES, name_of(named), "score").needs:
            able = ", ".join(n for n, s in WEIGHT_SCORES.items() if "norms" not in s.needs)
            raise ValueError(
                f"the score {name_of(named)} reads inputs of layers, which are not kept while training: take one of "
                f"{able}, or a step `prune`"
            )
        return named

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.share is None) == (self.pattern is None):
            raise ValueError("give either `share`, such as 0.9, or `pattern`, such as 2:4")
        if self.pattern is not None and self.ratio is None:
            raise ValueError(f"the pattern {self.pattern!r} is none such as 2:4 (2 of every 4 are kept)")
        if self.pattern is not None and self.regrow:
            raise ValueError("`regrow` moves zeros anywhere in a layer, and breaks the pattern: leave one of them out")
        if self.start >= self.until:
            raise ValueError(f"the zeros begin at {self.start:g} and end at {self.until:g}: let `from` be less")
        return self

    @property
    def ratio(self) -> tuple[int, int] | None:
        """(n, m) of the pattern."""
        try:
            return None if self.pattern is None else Sparsity.parse(self.pattern).group
        except TersorError:
            return None

    @property
    def final(self) -> float:
        """The share of zeros in the end."""
        if self.ratio is not None:
            return 1 - self.ratio[0] / self.ratio[1]
        assert self.share is not None
        return self.share

    @property
    def target(self) -> str:
        """What is asked for, as a step `prune` would say it."""
        return f"{self.pattern} weights" if self.pattern else f"{100 * self.final:g}% weights"


def sparsify(value: Any) -> Any:
    """The options of a share or a pattern alone; `none` is none.

    >>> sparsify(0.9), sparsify("2:4")
    ({'share': 0.9}, {'pattern': '2:4'})
    """
    if value in (None, "none", "off", False):
        return None
    if isinstance(value, (int, float)):
        return {"share": value}
    return {"pattern": value} if isinstance(value, str) else value


def _checked(table: Mapping[str, Any], value: Any, what: str) -> Named:
    try:
        return checked(table, parsed(value, what), what)
    except TersorError as error:
        raise ValueError(str(error)) from error
