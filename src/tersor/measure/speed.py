"""What a report may say about speed: faster or slower only if the interval of the ratio excludes 1."""

from dataclasses import dataclass

from tersor.engines import ENGINES
from tersor.measure.formatting import change_text, ratio_text
from tersor.measure.latency import Ratio, ratio
from tersor.measure.schema import Latency, Report
from tersor.words import _

# The ratio of an interval's ends above which the machine counts as busy.
BUSY = 1.5


@dataclass(frozen=True)
class Speed:
    """A speed-up and its interval, from the 10th to the 90th percentile over the rounds.

    >>> Speed(0.8, 0.75, 0.85).text, Speed(0.98, 0.9, 1.08).text
    ('1.2x slower', 'no difference beyond the noise (0.90x to 1.08x)')
    """

    value: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """Whether it is faster beyond chance."""
        return min(self.low, self.value) > 1

    @property
    def slower(self) -> bool:
        """Whether it is slower beyond chance."""
        return max(self.high, self.value) < 1

    @property
    def busy(self) -> bool:
        """Whether the rounds differ as much as on a machine that other processes use."""
        return self.high > BUSY * self.low

    @property
    def interval(self) -> str:
        """The interval as text."""
        return _("{low} to {high}", low=_two_decimals(self.low), high=_two_decimals(self.high))

    @property
    def text(self) -> str:
        """What may be said, as text without a comma."""
        if self.faster or self.slower:
            return change_text(self.value, "faster", "slower")
        noise = _("{interval}: a busy machine", interval=self.interval) if self.busy else self.interval
        return _("no difference beyond the noise ({noise})", noise=noise)


def simulated(report: Report) -> bool:
    """Whether the report's engine only simulates integers, so that its speed and precision say nothing."""
    # A report may name an engine of another version.
    engine = ENGINES.get(report.engine)
    return engine is not None and engine.simulates


def speed(report: Report) -> Speed | None:
    """The speed-up over FP32 in the same engine; None if it is unknown, or of a simulation.

    Reports of earlier versions have no interval; it is computed from the latencies.
    """
    value, spread = report.ratios.speedup, report.ratios.speedup_spread
    if value is None or simulated(report):
        return None
    if spread is None:
        return _measured(value, report.original.latency_ms, report.compressed.latency_ms)
    return Speed(value, *spread)


def speed_over_eager(report: Report) -> Speed | None:
    """The speed-up over the user's model in PyTorch; None if it is unknown, or of a simulation."""
    value = report.ratios.speedup_over_eager
    if value is None or simulated(report):
        return None
    return _measured(value, report.original_eager.latency_ms, report.compressed.latency_ms)


def _measured(value: float, baseline: Latency | None, other: Latency | None) -> Speed:
    """The speed-up with the interval of two latencies; without them any speed-up could be chance."""
    if baseline is None or other is None:
        return Speed(value, 0.0, float("inf"))
    found = _ratio(baseline, other)
    return Speed(value, found.low, found.high)


def _ratio(baseline: Latency, other: Latency) -> Ratio:
    if baseline.rounds and len(baseline.rounds) == len(other.rounds) and all(other.rounds):
        return ratio(baseline, other)
    # Rounds that cannot be paired: the widest interval that the calls allow.
    return Ratio(
        _over(baseline.median, other.median), _over(baseline.p10, other.p90), _over(baseline.p90, other.p10)
    )


def _two_decimals(value: float) -> str:
    return f"{value:.2f}x" if value < 9.995 else ratio_text(value)


def _over(a: float, b: float) -> float:
    return a / b if b else float("inf")
