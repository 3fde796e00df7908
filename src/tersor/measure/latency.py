"""Latency, measured so that two things can be compared: interleaved, warmed up, medians and spread."""

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
    """How many times faster: the ratio of the medians, and p10 and p90 of the ratio round by round."""

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
    """Times every callable in every round, so that a machine that slows down slows all of them alike.

    Each round goes through all callables in another order. A callable first runs `settle` seconds untimed
    (at least one call), so that the caches are its own and the threads that its predecessor left spinning
    have gone to sleep; then at least `min_time` seconds (at least one call), each call timed by itself.
    `progress` is told (rounds done, rounds). Latencies are in ms. What a callable raises passes through.

    >>> found = interleave({"a": lambda: sum(range(100))}, rounds=2, warmup=1, min_time=0.0, settle=0.0)
    >>> found["a"].runs, len(found["a"].rounds), found["a"].p10 <= found["a"].median <= found["a"].p90
    (2, 2, True)
    """
    if not callables or rounds < 1:
        raise TersorError(
            f"nothing to time: {len(callables)} callables, {rounds} rounds; give at least one of each"
        )
    for call in callables.values():
        for _ in range(warmup):
            call()
    samples: dict[str, list[list[float]]] = {name: [] for name in callables}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection inside a call would be charged to whoever happens to run
    try:
        for done in range(rounds):
            for name in order(tuple(callables), done):
                _timed(callables[name], settle)
                samples[name].append(_timed(callables[name], min_time))
            if progress is not None:
                progress(done + 1, rounds)
    finally:
        if collecting:
            gc.enable()
    return {name: summarize(blocks) for name, blocks in samples.items()}


def order(names: tuple[str, ...], turn: int) -> tuple[str, ...]:
    """Who runs after whom in this round: reversed every other round, rotated every second.

    >>> [order(("a", "b", "c"), turn) for turn in range(3)]
    [('a', 'b', 'c'), ('c', 'b', 'a'), ('b', 'c', 'a')]
    """
    shift = turn // 2 % len(names)
    rotated = names[shift:] + names[:shift]
    return rotated[::-1] if turn % 2 else rotated


def summarize(blocks: list[list[float]]) -> Latency:
    """Latency from the milliseconds of every call, one list a round.

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
    """The quantile of sorted values, linear between neighbours.

    >>> quantile([0.0, 10.0], 0.25)
    2.5
    """
    place = share * (len(ordered) - 1)
    left = int(place)
    right = min(left + 1, len(ordered) - 1)
    return ordered[left] + (ordered[right] - ordered[left]) * (place - left)


def ratio(baseline: Latency, other: Latency) -> Ratio:
    """How many times faster `other` is than `baseline`, both from one `interleave`.

    >>> slow, fast = summarize([[4.0], [6.0]]), summarize([[2.0], [2.0]])
    >>> ratio(slow, fast)
    Ratio(value=2.5, low=2.1, high=2.9)
    """
    if len(baseline.rounds) != len(other.rounds) or not baseline.rounds:
        raise TersorError(
            f"latencies of {len(baseline.rounds)} and {len(other.rounds)} rounds cannot be paired; "
            "time both in one call of interleave"
        )
    paired = sorted(a / b for a, b in zip(baseline.rounds, other.rounds, strict=True))
    return Ratio(baseline.median / other.median, quantile(paired, 0.1), quantile(paired, 0.9))


def _timed(call: Call, at_least: float) -> list[float]:
    calls = []
    end = perf_counter_ns() + int(at_least * 1e9)
    while True:
        start = perf_counter_ns()
        call()
        stop = perf_counter_ns()
        calls.append((stop - start) / 1e6)
        if stop >= end:
            return calls
