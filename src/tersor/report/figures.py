"""The figures of a report, with their direction, their noise, and whether they are a merit."""

import math
from dataclasses import dataclass

from tersor.inert import plain
from tersor.measure.formatting import is_fraction, metric_text, number_text, ratio_text, size_text, time_text
from tersor.measure.headline import TOLERATED, fallbacks
from tersor.measure.language import LanguageReport
from tersor.measure.parts.pruning import count_text
from tersor.measure.parts.training import loss_text
from tersor.measure.perplexity import TextScore
from tersor.measure.schema import Report
from tersor.measure.speed import simulated, speed
from tersor.words import said, shown

Value = float | str | None
# Relative noise assumed of a figure that was measured once.
ONCE = 0.05
_SIGMAS = 1.96
_UNITS = {"bytes": size_text, "ms": time_text, "x": ratio_text, "%": lambda value: metric_text(value, True)}


@dataclass(frozen=True)
class Figure:
    """One figure of a report, of any kind of report.

    Args:
        name: the figure's name; figures of the same name share a row.
        value: a number, text, or None if unknown.
        unit: ``bytes``, ``ms``, ``x`` (a ratio), ``%`` (of a fraction), or a suffix.
        higher_is_better: None if no value is better.
        must_match: whether runs that differ in it are not comparable, which a note then says.
        interval: what chance makes of a value if it is measured again; None: always the same.
        role: ``size``, ``latency`` or ``metric`` for the figures of a trade-off.
        good: False if the value is worse than that of the original model, and so not a merit even if it is the best.
    """

    name: str
    value: Value
    unit: str = ""
    higher_is_better: bool | None = None
    must_match: bool = False
    interval: tuple[float, float] | None = None
    good: bool = True
    role: str = ""

    @property
    def text(self) -> str:
        """The formatted value.

        >>> [Figure("", *args).text for args in ((1_500_000, "bytes"), (0.01234, "nats"), (10000,), (None,))]
        ['1.50 MB', '0.01234 nats', '10000', '–']
        """
        if self.value is None:
            return "–"
        if isinstance(self.value, str):
            return plain(self.value)
        if self.unit in _UNITS:
            return _UNITS[self.unit](self.value)
        number = str(self.value) if isinstance(self.value, int) else number_text(self.value)
        return f"{number} {plain(self.unit)}".strip()

    @property
    def words(self) -> str:
        """The formatted value in the reader's language."""
        return shown(self.text)

    def beats(self, other: "Figure") -> bool:
        """Whether it is better than another figure of its row, and the intervals do not overlap.

        >>> one, other = (Figure(said("latency"), v, "ms", False, interval=(v - 0.2, v + 0.2)) for v in (1.0, 1.3))
        >>> one.beats(other), one.beats(Figure(said("latency"), 1.3, "ms", False))
        (False, True)
        """
        (low, high), (other_low, other_high) = self._bounds(), other._bounds()
        return low > other_high if self.higher_is_better else high < other_low

    def _bounds(self) -> tuple[float, float]:
        assert isinstance(self.value, int | float)
        low, high = self.interval or (self.value, self.value)
        return min(low, self.value), max(high, self.value)


def figures(report: Report) -> tuple[Figure, ...]:
    """The figures of a Report."""
    before, after, ratios, environment = report.original, report.compressed, report.ratios, report.environment
    metric, kept = report.metric.name, _kept(report)
    latency, found, unaudited = after.latency_ms, speed(report), simulated(report)
    smaller = ratios.compression is None or ratios.compression > 1
    not_slower = not unaudited and (found is None or not found.slower)
    spread = None if latency is None else (latency.p10, latency.p90)
    computed = said("{cpu}, {count} threads, {precision}", cpu=environment.cpu or said("unknown CPU"),
                    count=environment.threads, precision=environment.precision)  # fmt: skip
    faster = None if found is None else (found.low, found.high)
    return (
        Figure(said("task"), report.task, must_match=True),
        Figure(said("recipe"), report.recipe),
        Figure(said("engine"), report.engine),
        Figure(said("computed on"), computed, must_match=True),
        Figure(said("on disk"), after.bytes, "bytes", False, good=smaller, role="size"),
        Figure(said("smaller than FP32"), ratios.compression, "x", True, good=smaller),
        Figure(said("latency"), None if latency is None else latency.median, "ms", False, False, spread, not_slower,
               "latency"),
        Figure(said("p10"), None if latency is None else latency.p10, "ms"),
        Figure(said("p90"), None if latency is None else latency.p90, "ms"),
        Figure(said("faster than FP32"), None if found is None else found.value, "x", True, False, faster,
               found is not None and found.faster),
        _measured_once(said("memory"), after.memory_bytes, before.memory_bytes, "bytes"),
        _measured_once(said("energy per call"), after.energy_joules, before.energy_joules, "J"),
        Figure(said("metric"), metric, must_match=True),
        Figure(said("samples evaluated"), report.samples.evaluation, must_match=True),
        _metric(report),
        Figure(said("{metric}, FP32", metric=metric), before.metric,
               "%" if is_fraction(metric, before.metric, after.metric) else ""),
        Figure(said("agrees with FP32"), after.agreement, "%", True, False,
               _of_samples(after.agreement, report.samples.evaluation), kept),
        Figure(said("multiply-accumulates, before → after pruning"), _pruned(report)),
        Figure(said("epochs trained"), sum(len(x.epochs) for x in report.trainings) if report.trainings else None),
        Figure(said("held-out loss, before → after training"), _trained(report)),
        Figure(said("float fallbacks"), None if unaudited else len(fallbacks(report)), "", False,
               good=not fallbacks(report)),
    )  # fmt: skip


def _pruned(report: Report) -> str | None:
    """The multiply-accumulates before and after each pruning."""
    found = (f"{count_text(x.macs_before)} → {count_text(x.macs_after)}" for x in report.prunings if not x.zeros)
    return "; ".join(found) or None


def _trained(report: Report) -> str | None:
    """The held-out loss before and after each training."""
    found = (f"{loss_text(x.before)} → {loss_text(x.after)}" for x in report.trainings)
    return "; ".join(found) or None


def _kept(report: Report) -> bool:
    """Whether the metric is not worse than FP32's: beyond chance, or without an interval by more than is tolerated."""
    drop, interval, before = report.ratios.metric_drop, report.compressed.metric_interval, report.original.metric
    if drop is None or before is None or drop <= 0:
        return True
    return interval[0] <= 0 if interval is not None else drop <= TOLERATED * abs(before)


def _metric(report: Report) -> Figure:
    """The metric; its noise is that of its difference from FP32 over the same samples."""
    name, better, before, after = report.metric.name, report.metric.higher_is_better, report.original, report.compressed
    unit = "%" if is_fraction(name, before.metric, after.metric) else ""
    noise = None
    if after.metric_interval is not None and before.metric is not None:
        low, high = after.metric_interval
        noise = (before.metric - high, before.metric - low) if better else (before.metric + low, before.metric + high)
    elif after.metric is not None:
        noise = (after.metric - TOLERATED * abs(after.metric), after.metric + TOLERATED * abs(after.metric))
    return Figure(name, after.metric, unit, better, False, noise, _kept(report), "metric")


def _measured_once(name: str, value: float | None, original: float | None, unit: str) -> Figure:
    """A figure whose spread is not known, since it was measured once."""
    noise = None if value is None else (value * (1 - ONCE), value * (1 + ONCE))
    good = value is None or original is None or value < original
    return Figure(name, value, unit, False, False, noise, good)


def _of_samples(share: float | None, samples: int | None) -> tuple[float, float] | None:
    """The 95 % interval (Wilson's) of a share of samples; without their number it could be any."""
    if share is None or not samples:
        return None if share is None else (0.0, 1.0)
    shrink = 1 + _SIGMAS**2 / samples
    middle = (share + _SIGMAS**2 / (2 * samples)) / shrink
    half = _SIGMAS * math.sqrt(share * (1 - share) / samples + (_SIGMAS / (2 * samples)) ** 2) / shrink
    return middle - half, middle + half


def language_figures(report: LanguageReport) -> tuple[Figure, ...]:
    """The figures of a LanguageReport."""
    score, before, kl = report.compressed, report.original, report.divergence
    shares = sorted(w.error / w.rtn_error for w in report.weights if w.error is not None and w.rtn_error)
    share = shares[len(shares) // 2] if shares else None
    smaller, floats = report.compression > 1, sum(w.format is None for w in report.weights)
    kept = score is None or before is None or _perplexities(score)[0] <= _perplexities(before)[1]
    nats = None if kl is None else _around(kl.nats, kl.standard_error)
    return (
        Figure(said("model"), report.model, must_match=True),
        Figure(said("recipe"), report.recipe),
        Figure(said("layout"), report.layout),
        Figure(said("on disk"), report.compressed_bytes, "bytes", False, good=smaller, role="size"),
        Figure(said("smaller"), report.compression, "x", True, good=smaller),
        Figure(said("bits per quantized weight"), report.bits_per_weight, "", False, good=smaller),
        Figure(said("evaluated on"), None if score is None else str(score.protocol), must_match=True),
        Figure(said("perplexity"), None if score is None else score.perplexity, "", False, False,
               None if score is None else _perplexities(score), kept, "metric"),
        Figure(said("standard error"), None if score is None else score.standard_error, "nats"),
        Figure(said("perplexity, original"), None if before is None else before.perplexity),
        Figure(said("divergence"), None if kl is None else kl.nats, "nats", False, False, nats, kept),
        Figure(said("same top prediction"), None if kl is None else kl.agreement, "%", True, False,
               None if kl is None else _of_samples(kl.agreement, kl.protocol.tokens), kept),
        Figure(said("error relative to RTN, median layer"), share, "", False, good=share is not None and share < 1),
        Figure(said("weights kept in float"), floats, "", False, good=not floats),
    )  # fmt: skip


def _around(nats: float, error: float | None) -> tuple[float, float]:
    """The 95 % interval of a mean over windows; a mean of one window could be any."""
    return (-math.inf, math.inf) if error is None else (nats - _SIGMAS * error, nats + _SIGMAS * error)


def _perplexities(score: TextScore) -> tuple[float, float]:
    low, high = _around(score.nats, score.standard_error)
    return math.exp(low), math.exp(high)
