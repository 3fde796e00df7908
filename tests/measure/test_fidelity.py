"""SQNR against textbook figures, over batches, and where numbers fail."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.measure import SignalNoise, compare, sqnr_db


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_a_uniform_signal_has_six_decibels_a_bit(bits):
    # Rounding a full-scale uniform signal to 2^bits steps: 20·log10(2)·bits.
    x = torch.linspace(-1, 1, 1_000_001, dtype=torch.float64)
    step = 2 / 2**bits
    assert sqnr_db(x, (x / step - 0.5).round() * step + step / 2) == pytest.approx(6.0206 * bits, abs=0.2)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40), st.integers(1, 39))
def test_split_batches_equal_one(values, cut):
    x = torch.tensor(values)
    y = x + 0.1
    split = compare(x[:cut], y[:cut]) + compare(x[cut:], y[cut:])
    whole = compare(x, y)
    assert split.signal == pytest.approx(whole.signal)
    assert split.noise == pytest.approx(whole.noise)


def test_a_wrong_scale_is_seen():
    # A cosine would call these equal.
    x = torch.randn(1000)
    assert sqnr_db(x, 2 * x) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("signal", "noise", "db"),
    [
        (1, 0, 150),
        (0, 0, 150),
        (0, 1, -150),
        (1, 1e-300, 150),
        (1e300, 1e-300, 150),
        (math.inf, 1, None),
        (1, math.nan, None),
    ],
)
def test_the_ends_of_the_scale(signal, noise, db):
    assert SignalNoise(signal, noise).db == db


def test_half_precision_sums_do_not_overflow():
    x = torch.full((100_000,), 200.0, dtype=torch.float16)
    assert sqnr_db(x, x * 0.5) == pytest.approx(6.0206, abs=1e-3)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[2\], approximate \[2, 1\]"):
        compare(torch.ones(2), torch.ones(2, 1))
