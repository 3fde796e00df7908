"""What a report tells of a search: what was asked, whether it was kept, and what else was tried."""

from typing import Annotated

from pydantic import Field

from tersor.measure.parts.base import ReportPart

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Tried(ReportPart):
    """One candidate: its speed over the original's with p10 and p90 of the rounds, and over the first candidate's, what
    a pruning had measured of its choice over the network that it began with (`predicted`), its size, and the mean drop
    on the samples that chose, in the metric's own unit; `error` says why it could not be made. `front`: no other is
    faster and loses less; `folder` holds it then, below `front` of the result's folder."""

    name: str
    speedup: Positive | None = None
    spread: tuple[Positive, Positive] | None = None
    over_first: Positive | None = None
    predicted: Positive | None = None
    bytes: Count | None = None
    drop: float | None = None
    seconds: Annotated[float, Field(ge=0)]
    error: str = ""
    front: bool = False
    chosen: bool = False
    folder: str = ""


class Contract(ReportPart):
    """What was asked of a search, and the proof.

    `goal` is what was asked, in words. `bound` is the drop that was allowed, `drop` and `interval` are of the result on
    `samples` that no choice has touched (`apart`; else the samples that chose), in the metric's own unit; `needed` is
    how many samples of this kind would prove that it is kept. Null: the metric is one number, or no drop was limited.
    """

    goal: tuple[str, ...]
    kept: bool
    proven: bool
    verdict: tuple[str, ...]
    bound: float | None = None
    drop: float | None = None
    interval: tuple[float, float] | None = None
    samples: Count | None = None
    needed: Count | None = None
    apart: bool = True
    evaluations: Count
    seconds: Annotated[float, Field(ge=0)]
    budget: Annotated[float, Field(gt=0)]
    tried: tuple[Tried, ...]
