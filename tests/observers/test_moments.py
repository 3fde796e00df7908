"""Errors by integrals against the same sums done value by value."""

import numpy as np
import pytest
import torch

from tersor.numerics import QuantSpec, qparams
from tersor.observers import MeanSquaredError, compare, observe, range_error
from tersor.observers.histogram import histogram_of
from tersor.observers.moments import grid_error, moments_of

SPECS = [
    QuantSpec("int8"),
    QuantSpec("int4"),
    QuantSpec("uint8", symmetric=False),
    QuantSpec("int2", symmetric=False),
]


def draws(kind):
    rng = np.random.default_rng(1)
    gauss = rng.standard_normal(100_000)
    return {
        "gauss": gauss,
        "relu": np.maximum(gauss, 0),
        "skewed": gauss / (1 + np.exp(-3 * gauss)),
        "negative": -np.abs(gauss) - 1,
        "student": rng.standard_t(3, 100_000),
    }[kind].astype(np.float32)


def true_error(x, spec, low, high):
    scale, zero_point = (t.double().numpy() for t in qparams(low, high, spec))
    codes = np.clip(np.rint(x.astype(np.float64) / scale) + zero_point, spec.low, spec.high)
    return float(((x - (codes - zero_point) * scale) ** 2).mean())


@pytest.mark.parametrize("kind", ["gauss", "relu", "skewed", "negative", "student"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_error_on_the_histogram_is_the_error_on_the_data(kind, spec, share):
    x = draws(kind)
    s = observe(None, torch.from_numpy(x), per_row=len(x))
    low, high = share * s.min, share * s.max
    assert range_error(s, spec, low, high) == pytest.approx(true_error(x, spec, low, high), rel=0.02)


def test_integrals_by_hand():
    # Two bins of width 1 (density 3 on [0, 1), 1 on [1, 2)): moments of the density itself.
    h = histogram_of(torch.tensor([0.25, 0.5, 0.75, 1.5]), 2.0 * 4096 - 1)
    assert h.width == 1.0
    m = moments_of(h)
    mass, shortfall = m.below(np.array([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 5.0]))
    assert mass.tolist() == [0, 0, 1.5, 3, 3.5, 4, 4]
    assert shortfall == pytest.approx([0, 0, 0.375, 1.5, 3.125, 5.0, 17.0])
    assert m.first == pytest.approx(3 * 0.5 + 1.5)
    assert m.second == pytest.approx(3 / 3 + 7 / 3)
    # One level at 0, so the error is the second moment; levels 0 and 2 meet at 1.
    assert grid_error(m, np.array([2.0]), 0, 0)[0] == pytest.approx(m.second)
    assert grid_error(m, np.array([2.0]), 0, 1)[0] == pytest.approx(3 / 3 + 1 / 3)


@pytest.mark.parametrize("kind", ["gauss", "relu", "negative", "student"])
@pytest.mark.parametrize("spec", [*SPECS[:2], QuantSpec("int3")], ids=str)
def test_mse_beats_every_threshold_of_a_fine_search(kind, spec):
    x = draws(kind)
    s = observe(None, torch.from_numpy(x), per_row=len(x))
    largest = max(-s.min, s.max)
    low, high = MeanSquaredError().range(s, spec)
    best = min(
        true_error(x, spec, max(s.min, -t) if s.min < 0 else 0, min(s.max, t) if s.max > 0 else 0)
        for t in np.geomspace(largest / 100, largest, 150)
    )
    assert true_error(x, spec, low, high) <= 1.01 * best


@pytest.mark.parametrize("kind", ["gauss", "skewed", "student"])
@pytest.mark.parametrize("spec", SPECS[2:], ids=str)
def test_asymmetric_mse_searches_both_ends(kind, spec):
    x = draws(kind)
    s = observe(None, torch.from_numpy(x), per_row=len(x))
    low, high = MeanSquaredError().range(s, spec)
    lows, highs = s.min * np.linspace(0, 1, 30), s.max * np.geomspace(0.02, 1, 40)
    best = min(range_error(s, spec, float(a), float(b)) for a in lows for b in highs)
    assert range_error(s, spec, low, high) <= 1.02 * best


def test_error_of_a_cast_format():
    x = draws("gauss")
    s = observe(None, torch.from_numpy(x), per_row=len(x))
    rows = {
        r.observer: r
        for r in compare(s, QuantSpec("fp8_e4m3"), {"minmax": _minmax(), "mse": MeanSquaredError()})
    }
    # Three bits of mantissa: a relative error of 2^-4 at most, about 31.5 dB.
    assert 30 < rows["minmax"].sqnr_db < 33
    assert rows["mse"].mse is None
    assert "minmax" in rows["mse"].note


def _minmax():
    from tersor.observers import MinMax

    return MinMax()
