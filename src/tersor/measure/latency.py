"""Latency for comparisons: interleaved rounds after warm-up, with medians and spread."""

import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter_ns

from tersor.errors import TersorError
from tersor.measure.schema import Latency

Call = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """A speed-up: the ratio of the medians, and p10 and p90 of the ratios round by round."""

    value: float
    low: float
    high: float


def interleave(
    callables: Mapping[str, Call],
    *,
    rounds: int = 15,
    warmup: int = 3,
    min_time: float = 0.05,
    settle: float = 0.005,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Latency]:
    """Time every callable in every round, so that a slowdown of the machine affects all of them equally.

    Each round runs the callables in another order. A callable first runs `settle` seconds untimed (at least one call),
    to fill the caches and let its predecessor's spinning threads go to sleep, then at least `min_time` seconds (at
    least one call), with each call timed. `progress` is called with (rounds done, rounds). Latencies are in ms.
    Exceptions of a callable propagate.

    >>> timed = interleave({"a": lambda: sum(range(100))}, rounds=2, warmup=1, min_time=0.0, settle=0.0)
    >>> timed["a"].runs, len(timed["a"].rounds), timed["a"].p10 <= timed["a"].median <= timed["a"].p90
    (2, 2, True)
    """
    if not callables or rounds < 1:
        raise TersorError(
            f"nothing to time: {len(callables)} callables, {rounds} rounds: pass at least one of each"
        )
    for call in callables.values():
        for _ in range(warmup):
            call()
    samples: dict[str, list[list[float]]] = {name: [] for name in callables}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection during a call would distort its time
    try:
        for done in range(rounds):
            for name in order(tuple(callables), done):
                _time_calls(callables[name], settle)
                samples[name].append(_time_calls(callables[name], min_time))
            if progress is not None:
                progress(done + 1, rounds)
    finally:
        if collecting:
            gc.enable()
    return {name: summarize(blocks) for name, blocks in samples.items()}


def order(names: tuple[str, ...], number: int) -> tuple[str, ...]:
    """The order of a round: rotated every second round and reversed in every other.

    >>> [order(("a", "b", "c"), number) for number in range(3)]
    [('a', 'b', 'c'), ('c', 'b', 'a'), ('b', 'c', 'a')]
    """
    shift = number // 2 % len(names)
    rotated = names[shift:] + names[:shift]
    return rotated[::-1] if number % 2 else rotated


def summarize(blocks: list[list[float]]) -> Latency:
    """Latency from the milliseconds of every call, one list per round.

    >>> summarize([[1.0, 3.0], [2.0]])
    Latency(median=2.0, p10=1.2, p90=2.8, runs=3, rounds=(2.0, 2.0))
    """
    calls = sorted(value for block in blocks for value in block)
    return Latency(
        median=statistics.median(calls),
        p10=quantile(calls, 0.1),
        p90=quantile(calls, 0.9),
        runs=len(calls),
        rounds=tuple(statistics.median(block) for block in blocks),
    )


def quantile(ordered: list[float], share: float) -> float:
    """The quantile of sorted values, with linear interpolation.

    >>> quantile([0.0, 10.0], 0.25)
    2.5
    """
    position = share * (len(ordered) - 1)
    left = int(position)
    right = min(left + 1, len(ordered) - 1)
    return ordered[left] + (ordered[right] - ordered[left]) * (position - left)


def ratio(baseline: Latency, other: Latency) -> Ratio:
    """The speed-up of `other` over `baseline`, both from one `interleave`.

    >>> slow, fast = summarize([[4.0], [6.0]]), summarize([[2.0], [2.0]])
    >>> ratio(slow, fast)
    Ratio(value=2.5, low=2.1, high=2.9)
    """
    if len(baseline.rounds) != len(other.rounds) or not baseline.rounds:
        raise TersorError(
            f"latencies of {len(baseline.rounds)} and {len(other.rounds)} rounds cannot be paired: "
            "time both in one call of interleave"
        )
    paired = sorted(a / b for a, b in zip(baseline.rounds, other.rounds, strict=True))
    return Ratio(baseline.median / other.median, quantile(paired, 0.1), quantile(paired, 0.9))


def _time_calls(call: Call, min_time: float) -> list[float]:
    calls = []
    end = perf_counter_ns() + int(min_time * 1e9)
    while True:
        start = perf_counter_ns()
        call()
        stop = perf_counter_ns()
        calls.append((stop - start) / 1e6)
        if stop >= end:
            return calls
