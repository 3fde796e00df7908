"""What a search is asked for: what may be lost, how fast or small the result must be, and how long it may take."""

import math
import re
import time
from dataclasses import dataclass, field
from typing import Any

from tersor.errors import RecipeError
from tersor.measure.choosing.contract import Allowed
from tersor.measure.formatting import ratio_text, size_text
from tersor.words import said

_BYTES = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([kMG]?)(i?)B?\s*", re.IGNORECASE)
_TIME = re.compile(r"\s*(\d+(?:\.\d*)?)\s*(s|m|min|h|)\s*", re.IGNORECASE)
_TIMES = re.compile(r"\s*(\d+(?:\.\d*)?)\s*x?\s*", re.IGNORECASE)
_PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3}
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Goal:
    """What a result must keep; what is not asked is made as good as it can be.

    Args:
        max_drop: of the metric.
        min_speedup: over the original network in the same engine.
        max_bytes: of the files that the engine reads.
    """

    max_drop: Allowed | None = None
    min_speedup: float | None = None
    max_bytes: int | None = None

    @classmethod
    def parse(cls, max_drop: Any, min_speedup: Any, max_bytes: Any) -> "Goal":
        """From what a user wrote.

        Raises:
            RecipeError: nothing is asked, or a value that cannot be read.

        >>> Goal.parse("0.5%", "2x", "2MB")
        Goal(max_drop=Allowed(amount=0.5, relative=True), min_speedup=2.0, max_bytes=2000000)
        """
        if max_drop is None and min_speedup is None and max_bytes is None:
            raise RecipeError(
                "nothing is asked for: give max_drop, such as 0.5 (points of an accuracy), min_speedup, such as 2, or "
                "max_bytes, such as 2MB"
            )
        return cls(
            None if max_drop is None else Allowed.parse(max_drop),
            None if min_speedup is None else _times(min_speedup),
            None if max_bytes is None else _bytes(max_bytes),
        )

    @property
    def fastest(self) -> bool:
        """Whether speed is what is wanted, within what may be lost; otherwise as little loss as possible."""
        return self.max_drop is not None

    def sentences(self, fraction: bool) -> tuple[str, ...]:
        """What is asked, part by part; a drop in points where the metric is a fraction."""
        found = list[str]()
        if self.max_drop is not None:
            points = fraction and not self.max_drop.relative
            amount = said("{value} points", value=str(self.max_drop)) if points else str(self.max_drop)
            found.append(said("at most {amount} lost", amount=amount))
        if self.min_speedup is not None:
            found.append(said("at least {times} as fast", times=ratio_text(self.min_speedup)))
        if self.max_bytes is not None:
            found.append(said("at most {size}", size=size_text(self.max_bytes)))
        return tuple(found)


@dataclass
class Budget:
    """The time that a search may take.

    Args:
        seconds: of all runs together.
        spent: of earlier runs.
    """

    seconds: float
    spent: float = 0.0
    start: float = field(default_factory=time.monotonic)

    @property
    def used(self) -> float:
        """Seconds so far."""
        return self.spent + time.monotonic() - self.start

    def allows(self, seconds: float) -> bool:
        """Whether something that takes so long ends in time."""
        return self.used + seconds <= self.seconds


def seconds_of(text: Any) -> float:
    """The seconds of a time such as ``30m``, ``90s``, ``1.5h`` or a number of seconds.

    Raises:
        RecipeError: anything else.

    >>> seconds_of("30m"), seconds_of(90), seconds_of("1.5h")
    (1800.0, 90.0, 5400.0)
    """
    found = None if isinstance(text, bool) else _TIME.fullmatch(str(text))
    seconds = float(found[1]) * _SECONDS[found[2].lower()] if found else 0.0
    if not 0 < seconds < math.inf:
        raise RecipeError(f"the budget is {text!r}: give a time such as 30m, 90s or 1.5h")
    return seconds


def _times(text: Any) -> float:
    found = None if isinstance(text, bool) else _TIMES.fullmatch(str(text))
    if found is None or not 0 < float(found[1]) < math.inf:
        raise RecipeError(f"min_speedup is {text!r}: give a factor such as 2 or 1.5x")
    return float(found[1])


def _bytes(text: Any) -> int:
    found = None if isinstance(text, bool) else _BYTES.fullmatch(str(text))
    size = float(found[1]) * (1024 if found[3] else 1000) ** _PREFIXES[found[2].lower()] if found else 0.0
    if size < 1:
        raise RecipeError(f"max_bytes is {text!r}: give a size such as 2MB or 500kB")
    return int(size)
