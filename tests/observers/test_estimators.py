"""Percentile, moving average and ADMM against their definitions; the table that compares all."""

import numpy as np
import pytest
import torch

from tersor.errors import CalibrationError
from tersor.numerics import QuantSpec
from tersor.observers import OBSERVERS, Admm, MinMax, Percentile, compare, observe

INT8, UINT8 = QuantSpec("int8"), QuantSpec("uint8", symmetric=False)


def gathered(x):
    x = torch.as_tensor(np.asarray(x), dtype=torch.float32)
    return observe(None, x, per_row=x.numel())


def draws(kind, n=100_000):
    rng = np.random.default_rng(2)
    return {"gauss": rng.standard_normal(n), "relu": np.maximum(rng.standard_normal(n), 0)}[kind].astype(
        np.float32
    )


@pytest.mark.parametrize("kind", ["gauss", "relu"])
@pytest.mark.parametrize("percent", [50.5, 99.0, 99.9, 99.99, 100.0])
def test_percentile_is_the_quantile_of_the_magnitudes(kind, percent):
    x = draws(kind)
    s = gathered(x)
    low, high = Percentile(percent).range(s, UINT8)
    true = np.quantile(np.abs(x), percent / 100)
    assert high == pytest.approx(min(true, s.max), abs=2 * s.histogram.width)
    assert low == pytest.approx(max(-true, min(s.min, 0)), abs=2 * s.histogram.width)


def test_percentile_inside_a_spike_of_zeros_keeps_a_range():
    low, high = Percentile(10).range(gathered([0.0] * 90 + [1.0] * 10), INT8)
    assert low == 0
    assert 0 < high < 1e-3


@pytest.mark.parametrize("percent", [0, -1, 100.1])
def test_percentile_out_of_bounds(percent):
    with pytest.raises(CalibrationError, match="percentile"):
        Percentile(percent)


def plain_admm(x, below, above, shrink, rounds=300):
    alpha = np.abs(x).max() / (max(below, above) * shrink)
    for _ in range(rounds):
        q = np.clip(np.rint(x / alpha), -below, above)
        if not (q * q).sum():
            break
        before, alpha = alpha, (x * q).sum() / (q * q).sum()
        if abs(alpha - before) <= 1e-6 * alpha:
            break
    return alpha


@pytest.mark.parametrize(
    ("kind", "spec", "codes"),
    [
        ("gauss", INT8, (127, 127)),
        ("relu", UINT8, (0, 255)),
        ("relu", INT8, (127, 127)),
        ("gauss", QuantSpec("int4"), (7, 7)),
    ],
)
def test_admm_is_the_plain_iteration(kind, spec, codes):
    x = draws(kind).astype(np.float64)
    high = Admm().range(gathered(x), spec)[1]
    assert high / codes[1] == pytest.approx(plain_admm(x, *codes, 2.5), rel=2e-3)


def test_admm_keeps_its_scale_where_all_codes_are_zero():
    # 1-bit-like: everything rounds to 0 at the first step, so Σq² = 0 and α stays where it began.
    spec = QuantSpec("int2")
    x = np.full(100, 1.0)
    assert Admm(shrink=1 / 4).range(gathered(x), spec)[1] == pytest.approx(1.0)  # α = 4, cut to the maximum
    assert Admm(shrink=2.5).range(gathered(x), spec)[1] == pytest.approx(1.0, rel=1e-3)


def test_one_sided_range_is_widened_to_zero():
    for observer in OBSERVERS.values():
        low, high = observer.range(gathered(np.linspace(2.5, 3.5, 1000)), UINT8)
        assert low == 0
        assert high == pytest.approx(3.5, abs=0.05)


@pytest.mark.parametrize("spike", [1.0, -1.0, 0.3, 255.0, 1e-6])
def test_values_at_the_end_of_a_range_are_not_clipped(spike):
    x = np.concatenate([np.linspace(0, spike, 3000), np.full(1000, spike)])
    rows = {row.observer: row for row in compare(gathered(x), UINT8, OBSERVERS)}
    assert rows["minmax"].clipped == 0
    known = [row for row in rows.values() if row.low is not None]
    within = [row for row in known if row.low <= min(spike, 0) <= max(spike, 0) <= row.high]
    assert [row.clipped for row in within] == [0] * len(within)


def test_values_at_an_inner_end_of_a_range_are_not_clipped():
    x = np.concatenate([np.linspace(0, 1, 3000), np.full(1000, 1.0), np.full(4, 3.0)])
    (row,) = compare(gathered(x), UINT8, {"cut": Percentile(percent=99.8)})
    assert row.high == pytest.approx(1.0, abs=1e-3)
    assert row.high >= 1
    assert row.clipped == pytest.approx(4 / len(x))


def test_compare_has_a_row_for_each_and_mse_is_the_cheapest():
    x = np.random.default_rng(0).standard_t(3, 100_000)
    rows = compare(gathered(x), INT8, OBSERVERS)
    assert [r.observer for r in rows] == list(OBSERVERS)
    best = min(rows, key=lambda r: r.mse)
    assert best.observer == "mse"
    for row in rows:
        truly = ((x < row.low) | (x > row.high)).mean()
        assert row.clipped == pytest.approx(truly, abs=2e-5 + 0.01 * truly)
        quantized = np.clip(np.rint(x / (row.high / 127)), -127, 127) * (row.high / 127)
        if -row.low == row.high:
            assert row.sqnr_db == pytest.approx(
                10 * np.log10((x**2).mean() / ((x - quantized) ** 2).mean()), abs=0.1
            )


def test_compare_says_why_a_row_is_empty():
    signed = gathered(draws("gauss"))
    rows = compare(signed, QuantSpec("uint8"), {"minmax": MinMax()})
    assert rows[0].mse is None
    assert "negative" in rows[0].note
