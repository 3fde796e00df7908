"""Interleaving, order, quantiles and ratios; timing itself against calls whose length is known."""

import gc
import time
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import TersorError
from tersor.measure import interleave, ratio
from tersor.measure.latency import order, quantile, summarize


def test_every_round_runs_everyone_once_in_changing_order():
    calls = []
    record = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    found = interleave(record, rounds=6, warmup=2, min_time=0, settle=0)
    assert calls[:6] == ["a", "a", "b", "b", "c", "c"]
    # One untimed and one timed call each, six rounds.
    rounds = ["".join(calls[at : at + 6]) for at in range(6, len(calls), 6)]
    assert rounds == ["aabbcc", "ccbbaa", "bbccaa", "aaccbb", "ccaabb", "bbaacc"]
    assert {latency.runs for latency in found.values()} == {6}


@given(st.integers(1, 6))
def test_over_a_full_cycle_everyone_stands_everywhere_equally_often(count):
    names = tuple(map(str, range(count)))
    for place in range(count):
        stood = [order(names, turn)[place] for turn in range(2 * count)]
        assert {stood.count(name) for name in names} == {2}


def test_sleep_is_measured_in_milliseconds():
    found = interleave(
        {"one": lambda: time.sleep(0.002), "four": lambda: time.sleep(0.008)}, rounds=4, min_time=0.01
    )
    assert 2 <= found["one"].p10 <= found["one"].median <= found["one"].p90
    # Sleep is never shorter; longer it may be on a busy machine, so only a wide upper bound.
    assert 8 <= found["four"].median < 80
    speed = ratio(found["four"], found["one"])
    assert speed.low <= speed.high
    assert 1.2 < speed.value < 8


def test_a_fast_call_is_repeated_until_min_time():
    calls = interleave({"quick": lambda: None}, rounds=1, min_time=0.01)["quick"].runs
    assert calls > 100


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_quantiles_are_those_of_the_standard_library(values):
    ordered = sorted(values)
    expected = quantiles(ordered, n=10, method="inclusive")
    assert quantile(ordered, 0.1) == pytest.approx(expected[0], abs=1e-6)
    assert quantile(ordered, 0.9) == pytest.approx(expected[-1], abs=1e-6)


def test_ratio_pairs_the_rounds():
    # A machine that slows down tenfold half-way: the paired ratio does not see it.
    slow, fast = summarize([[2.0], [20.0]]), summarize([[1.0], [10.0]])
    assert (ratio(slow, fast).value, ratio(slow, fast).low, ratio(slow, fast).high) == (2.0, 2.0, 2.0)


def test_ratio_of_unpaired_latencies_is_refused():
    with pytest.raises(TersorError, match="cannot be paired"):
        ratio(summarize([[1.0]]), summarize([[1.0], [2.0]]))


@pytest.mark.parametrize(("callables", "rounds"), [({}, 3), ({"a": int}, 0)])
def test_nothing_to_time(callables, rounds):
    with pytest.raises(TersorError, match="nothing to time"):
        interleave(callables, rounds=rounds)


def test_a_failing_call_passes_through_and_collection_is_restored():
    seen = []

    def broken():
        seen.append(gc.isenabled())
        if len(seen) > 3:
            raise ValueError("of a test")

    with pytest.raises(ValueError, match="of a test"):
        interleave({"broken": broken}, rounds=3, warmup=1, min_time=0)
    assert seen[0]
    assert not seen[2]
    assert gc.isenabled()


def test_progress_is_told():
    seen = []
    interleave({"a": int}, rounds=3, min_time=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
