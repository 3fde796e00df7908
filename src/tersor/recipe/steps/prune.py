"""The step `prune`: channels, heads and hidden units go, and the layers that read them make up for it."""

import re
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_serializer, model_validator

from tersor.errors import TersorError
from tersor.recipe.steps.base import Phase, Step, Subject
from tersor.solvers.structured import REPAIRS, SCORES
from tersor.solvers.weights import WEIGHT_SCORES
from tersor.tables import Named, checked, parsed
from tersor.task import Task

Times = Literal["macs", "parameters", "bytes", "latency"]
Share = Literal["channels", "weights", "mlp", "heads", "experts", "layers"]
Part = Literal["channels", "branches", "rank"]
GIVEN = "widths"
"""The target of a pruning whose result is written out."""
_NUMBER = r"(\d+(?:\.\d+)?)"
_TIMES = re.compile(rf"{_NUMBER}x(?: ({'|'.join(get_args(Times))}))?")
_SHARE = re.compile(rf"{_NUMBER}% ({'|'.join(get_args(Share))})")
_PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*) weights")


def _score(value: Any, info: Any) -> Named:
    """An entry of SCORES; of WEIGHT_SCORES where single weights become zero."""
    table = WEIGHT_SCORES if str(info.data.get("target", "")).endswith(" weights") else SCORES
    try:
        return checked(table, parsed(value, "score"), "score")
    except TersorError as error:
        raise ValueError(str(error)) from error


def _repair(value: Any) -> Named | None:
    """An entry of REPAIRS; `none` is none."""
    if value in (None, "none", "off", False):
        return None
    try:
        return checked(REPAIRS, parsed(value, "repair"), "repair")
    except TersorError as error:
        raise ValueError(str(error)) from error


def _patterns(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Prune(Step):
    """How a float network is made narrower: what goes, how much, and how what stays is repaired.

    Args:
        target: how much less is left: ``2x macs``, ``1.5x parameters``, ``2x bytes``, ``1.5x latency`` (or ``1.5x``) on
            the engine, or ``30% channels`` of each group; ``90% weights`` become zero, ``2:4 weights`` all but 2 of
            every 4 neighbouring inputs; ``widths``: those that are given; of a folder in the Hugging Face layout
            ``25% mlp`` (columns of each MLP), ``heads``, ``experts`` or ``layers``.
        structure: what may go of a graph: ``channels`` (heads and hidden units, too), ``branches`` beside a shortcut;
            or ``rank``: layers become two thinner ones, where that is faster in the engine.
        score: an entry of ``tersor.solvers.structured.SCORES``, which says what goes first; for single weights of
            ``tersor.solvers.weights.WEIGHT_SCORES``.
        repair: an entry of ``REPAIRS``, which fits the layers that lost inputs on the calibration data; ``none``.
        rounds: in how many parts; each is scored on the network that the one before it left.
        multiple: what is left of a group is a multiple of it, where the group has so many channels.
        most: the largest share of a group that may go.
        layers: patterns of the names of layers whose outputs may go; empty: all.
        keep: patterns of layers that stay as they are.
        samples: of the calibration data that are used.
        widths: for the target ``widths`` how many are left of a group behind each round, by the tensor that names the
            group; groups that are not named stay whole. The record of a pruning has its own, so that what was chosen
            by measuring is made again without it.
        dropped: for the target ``widths`` the round in which a branch goes, by the name of its last layer.

    >>> Prune(target="2x macs").amount
    ('macs', 2.0)
    """

    name: ClassVar[str] = "prune"
    phase: ClassVar[Phase] = "float"

    target: str = "2x macs"
    structure: Annotated[tuple[Part, ...], BeforeValidator(_patterns)] = ("channels",)
    score: Annotated[Named, BeforeValidator(_score)] = "obs"
    repair: Annotated[Named | None, BeforeValidator(_repair)] = "ridge"
    rounds: int = Field(default=3, ge=1, le=100)
    multiple: int = Field(default=1, ge=1)
    most: float = Field(default=0.9, gt=0, lt=1)
    layers: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()
    keep: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()
    samples: int = Field(default=512, ge=1)
    widths: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] = Field(default_factory=dict)
    dropped: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)

    @field_validator("target")
    @classmethod
    def _readable(cls, value: str) -> str:
        text = " ".join(value.lower().split())
        if text == GIVEN:
            return text
        times, share, pattern = _TIMES.fullmatch(text), _SHARE.fullmatch(text), _PATTERN.fullmatch(text)
        if pattern is not None:
            if int(pattern[1]) >= int(pattern[2]):
                raise ValueError(f"the target {value!r} keeps all weights: write such as `2:4 weights`")
            return text
        if times is None and share is None:
            raise ValueError(
                f"the target {value!r} is none of `2x macs`, `2x parameters`, `2x bytes`, `1.5x latency`, "
                f"`2:4 weights`, `widths`, {', '.join(f'`30% {what}`' for what in get_args(Share))}"
            )
        if times is not None and float(times[1]) <= 1:
            raise ValueError(f"the target {value!r} makes nothing smaller: ask for more than 1x")
        if share is not None and not 0 < float(share[1]) < 100:
            raise ValueError(f"the target {value!r} is no share between 0% and 100% of the {share[2]}")
        return f"{times[1]}x latency" if times is not None and times[2] is None else text

    @model_validator(mode="after")
    def _whole(self) -> "Prune":
        if (self.target == GIVEN) != bool(self.widths or self.dropped):
            raise ValueError("the target `widths` and the options `widths` or `dropped` go together")
        for name, left in self.widths.items():
            if len(left) != self.rounds or list(left) != sorted(left, reverse=True):
                raise ValueError(
                    f"widths of {name} are {list(left)}: give one for each of {self.rounds} rounds, falling"
                )
        if late := [name for name, number in self.dropped.items() if number > self.rounds]:
            raise ValueError(f"{late[0]} is dropped in round {self.dropped[late[0]]} of {self.rounds}")
        return self

    @model_serializer(mode="wrap")
    def _written(self, handler: Any) -> dict[str, Any]:
        """Files of versions without ``widths`` are written back unchanged."""
        return {k: v for k, v in handler(self).items() if v or k not in ("widths", "dropped")}

    @property
    def amount(self) -> tuple[Times | Share | Literal["widths"], float]:
        """What the target counts, and by how much it shall fall: a factor, or a share."""
        if self.target == GIVEN:
            return "widths", 1.0
        number, what = self.target.split()
        if self.pattern is not None:
            return "weights", 1 - self.pattern[0] / self.pattern[1]
        return what, float(number[:-1]) / (100 if number.endswith("%") else 1)  # type: ignore[return-value]

    @property
    def pattern(self) -> tuple[int, int] | None:
        """(n, m) of a target such as ``2:4 weights``."""
        found = _PATTERN.fullmatch(self.target)
        return None if found is None else (int(found[1]), int(found[2]))

    def __call__(self, subject: Subject, task: Task | None, stages: Any) -> Any:
        """The subject, pruned by its host."""
        return subject.host.prune(self, subject, task, stages)
