"""The step `prune`: channels, heads and hidden units go, and the layers that read them make up for it."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from tersor.errors import TersorError
from tersor.recipe.steps.base import Phase, Step, Subject
from tersor.solvers.structured import REPAIRS, SCORES
from tersor.tables import Named, checked, parsed
from tersor.task import Task

Cost = Literal["macs", "parameters", "channels"]
_TIMES, _SHARE = re.compile(r"(\d+(?:\.\d+)?)x (macs|parameters)"), re.compile(r"(\d+(?:\.\d+)?)% channels")


def _score(value: Any) -> Named:
    try:
        return checked(SCORES, parsed(value, "score"), "score")
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
        target: how much less is left: ``2x macs`` or ``1.5x parameters``, or ``30% channels`` of each group.
        score: an entry of ``tersor.solvers.structured.SCORES``, which says what goes first.
        repair: an entry of ``REPAIRS``, which fits the layers that lost inputs on the calibration data; ``none``.
        rounds: in how many parts; each is scored on the network that the one before it left.
        multiple: what is left of a group is a multiple of it, where the group has so many channels.
        most: the largest share of a group that may go.
        layers: patterns of the names of layers whose outputs may go; empty: all.
        keep: patterns of layers that stay as they are.
        samples: of the calibration data that are used.

    >>> Prune(target="2x macs").amount
    ('macs', 2.0)
    """

    name: ClassVar[str] = "prune"
    phase: ClassVar[Phase] = "float"

    target: str = "2x macs"
    score: Annotated[Named, BeforeValidator(_score)] = "obs"
    repair: Annotated[Named | None, BeforeValidator(_repair)] = "ridge"
    rounds: int = Field(default=3, ge=1, le=100)
    multiple: int = Field(default=1, ge=1)
    most: float = Field(default=0.9, gt=0, lt=1)
    layers: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()
    keep: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()
    samples: int = Field(default=512, ge=1)

    @field_validator("target")
    @classmethod
    def _readable(cls, value: str) -> str:
        text = " ".join(value.lower().split())
        times, share = _TIMES.fullmatch(text), _SHARE.fullmatch(text)
        if times is None and share is None:
            raise ValueError(f"the target {value!r} is none of `2x macs`, `2x parameters` and `30% channels`")
        if times is not None and float(times[1]) <= 1:
            raise ValueError(f"the target {value!r} makes nothing smaller: ask for more than 1x")
        if share is not None and not 0 < float(share[1]) < 100:
            raise ValueError(f"the target {value!r} is no share between 0% and 100% of the channels")
        return text

    @property
    def amount(self) -> tuple[Cost, float]:
        """What the target counts, and by how much it shall fall: a factor, or for channels a share."""
        times = _TIMES.fullmatch(self.target)
        if times is not None:
            return ("macs" if times[2] == "macs" else "parameters"), float(times[1])
        share = _SHARE.fullmatch(self.target)
        assert share is not None
        return "channels", float(share[1]) / 100

    def __call__(self, subject: Subject, task: Task | None, stages: Any) -> Any:
        """The subject, pruned by its host."""
        return subject.host.prune(self, subject, task, stages)
