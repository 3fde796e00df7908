"""What a report tells of zeros and of removed channels: what they save, and whether a measured pair is faster."""

from typing import Annotated, Literal

from pydantic import Field

from tersor.measure.parts.base import ReportPart

Count = Annotated[int, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0)]


class Zeros(ReportPart):
    """The zeros that pruning left in ``weights`` weights.

    `pattern` is n:m where it holds in every layer with zeros, and empty otherwise. `bytes` are those of the shipped
    files and `deflated` what zlib makes of them at level 6, as an archive or a download would; `estimated`, if it was
    tried on a part of large files. `condition` says when the engine skips zeros, and what of that is not so here.
    """

    weights: Count
    zeros: Count
    pattern: str = ""
    bytes: Count
    deflated: Count
    estimated: bool = False
    condition: str = ""

    @property
    def share(self) -> float:
        """The share of the weights that are zeros.

        >>> Zeros(weights=200, zeros=50, bytes=1000, deflated=800).share
        0.25
        """
        return self.zeros / max(1, self.weights)


class Pair(ReportPart):
    """Two networks timed in interleaved rounds in one engine: the result, and its like without one thing.

    `without` names that thing: the `zeros`, in whose place other values stand; or the steps that removed `channels`,
    which the recipe of the other network lacks. `speedup` is the ratio of the medians, above 1 if the result is
    faster; `spread` are p10 and p90 over the rounds.
    """

    without: Literal["zeros", "channels"]
    speedup: Ratio
    spread: tuple[Ratio, Ratio]
