"""The grid: power of two, aligned to zero, exact when it grows and merges."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.observers.histogram import BINS, histogram_of, rebinned

# Of a value that vanishes beside the largest (2^-140 of it) the product with 1/width is 0, and its sign is lost.
floats = st.floats(-(2.0**50), 2.0**50, width=32).filter(lambda v: v == 0 or abs(v) > 1e-20)


def make(values):
    x = torch.tensor(values, dtype=torch.float32)
    return histogram_of(x, float(x.abs().max()))


def same(a, b):
    return a.exponent == b.exponent and a.zeros == b.zeros and np.array_equal(a.counts, b.counts)


@given(st.lists(floats, min_size=1, max_size=40))
def test_every_value_lies_in_its_bin_by_exact_arithmetic(values):
    h = make(values)
    expected = np.zeros(2 * BINS, dtype=np.int64)
    for v in np.array(values, dtype=np.float32).astype(np.float64):
        if v != 0:
            expected[BINS + int(np.floor(v / h.width))] += 1  # a power of two divides exactly
    assert np.array_equal(h.counts, expected)
    assert h.zeros == sum(np.float32(v) == 0 for v in values)


@given(st.lists(floats, min_size=2, max_size=40), st.integers(1, 39))
def test_merging_parts_is_exactly_the_whole(values, cut):
    cut = min(cut, len(values) - 1)
    a, b = make(values[:cut]), make(values[cut:])
    assert same(a.merged(b), make(values))
    assert same(b.merged(a), make(values))


@given(st.floats(2.0**-66, 2.0**100, width=32))
def test_more_than_half_of_the_bins_are_in_use(largest):
    h = make([largest, -largest])
    assert BINS / 2 <= largest / h.width < BINS
    assert h.counts.sum() == 2


def test_growth_over_every_distance():
    small = make([1.0, -1.0, 0.75, -0.25, 0.0])
    for steps in range(20):
        grown = small.coarsened(small.exponent + steps)
        assert grown.total == 5
        expected = np.zeros_like(grown.counts)
        for v in (1.0, -1.0, 0.75, -0.25):
            expected[BINS + int(np.floor(v / grown.width))] += 1
        assert np.array_equal(grown.counts, expected)


@pytest.mark.parametrize("value", [1e-45, 1e-38, 3.4e38, -3.4e38])
def test_the_ends_of_float32(value):
    assert make([value]).total == 1


def test_magnitudes_fold_the_negative_side():
    h = make([-1.5, 1.5, 3.0, -0.1])
    assert h.magnitudes.sum() == 4
    assert np.flatnonzero(h.magnitudes).tolist() == [int(v / h.width) for v in (0.1, 1.5, 3.0)] or (
        # A negative value on an edge belongs to the bin below it.
        np.flatnonzero(h.magnitudes).tolist()
        == [int(0.1 / h.width), int(1.5 / h.width) - 1, int(1.5 / h.width), int(3.0 / h.width)]
    )


@given(st.lists(st.integers(0, 1000), min_size=10, max_size=200), st.integers(1, 64))
def test_rebinning_loses_no_count(counts, bins):
    new = rebinned(np.array(counts), 0.5, 0.5 * len(counts), bins)
    assert new.sum() == sum(counts)
    assert (new >= 0).all()
