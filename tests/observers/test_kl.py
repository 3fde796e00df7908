"""The KL threshold against the plain loop, and on the shapes where it must and must not clip."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.numerics import QuantSpec
from tersor.observers import KullbackLeibler, kl_threshold, observe
from tersor.observers.histogram import rebinned

INT8 = QuantSpec("int8")


def naive_threshold(counts, width, levels):
    """The rule of the docstring, bin by bin."""
    bins = len(counts)
    best, best_kl = None, math.inf
    for i in range(levels, bins + 1):
        p = np.array(counts[:i], dtype=np.float64)
        tail = sum(counts[i:])
        p[-1] += tail
        q = np.zeros(i)
        group = np.arange(i) * levels // i
        for g in range(levels):
            inside = np.flatnonzero(group == g)
            filled = inside[p[inside] > 0]
            mass = float(sum(counts[k] for k in inside))
            if len(filled):
                q[filled] = (mass or 1.0) / len(filled)
        if 2 * sum(counts[:i]) < sum(counts):
            continue
        p, q = p / p.sum(), q / q.sum()
        use = p > 0
        kl = float((p[use] * np.log(p[use] / q[use])).sum())
        if kl <= best_kl + 1e-12:
            best, best_kl = i, min(kl, best_kl)
    return min(best + 0.5, float(bins)) * width


def counts_of(x, bins=2048):
    magnitude = np.abs(x[x != 0])
    return np.histogram(magnitude, bins, (0, magnitude.max()))[0]


def draws(kind, n=20_000, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "gauss": rng.standard_normal(n),
        "relu": np.maximum(rng.standard_normal(n), 0),
        "laplace": rng.laplace(size=n),
        "student": rng.standard_t(2, n),
        "uniform": rng.uniform(-1, 1, n),
        "spikes": rng.integers(0, 40, n).astype(float),
        "outlier": np.append(rng.standard_normal(n), 60.0),
    }[kind]


@pytest.mark.parametrize("kind", ["gauss", "relu", "laplace", "student", "uniform", "spikes", "outlier"])
@pytest.mark.parametrize("levels", [32, 64])
def test_equals_the_plain_loop(kind, levels):
    counts = counts_of(draws(kind, 4000), 512)
    assert kl_threshold(counts, 0.25, levels) == naive_threshold(counts.tolist(), 0.25, levels)


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0, 0, 1, 2, 5, 40, 1000]), min_size=12, max_size=60), st.integers(2, 10))
def test_equals_the_plain_loop_on_any_counts(counts, levels):
    if sum(counts) == 0:
        counts[-1] = 1
    assert kl_threshold(np.array(counts), 1.0, levels) == naive_threshold(counts, 1.0, levels)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [128, 256])
def test_equals_the_plain_loop_at_full_size(levels):
    counts = counts_of(draws("laplace"))
    assert kl_threshold(counts, 1.0, levels) == naive_threshold(counts.tolist(), 1.0, levels)


def threshold(x, spec=INT8):
    x = torch.as_tensor(x, dtype=torch.float32)
    return KullbackLeibler().range(observe(None, x, per_row=x.numel()), spec)


def test_more_than_one_candidate_is_tried():
    # 128 bins and 128 levels leave one candidate: the result is the maximum. Ours has 1,921.
    low, high = threshold(draws("student", 200_000))
    assert high < 0.5 * np.abs(draws("student", 200_000)).max()
    assert low == -high


def test_heavy_tail_is_clipped_and_uniform_is_not():
    for kind in ("student", "outlier"):
        x = draws(kind, 200_000)
        assert threshold(x)[1] < 0.5 * np.abs(x).max()
    uniform = draws("uniform", 200_000)
    assert threshold(uniform)[1] > 0.99 * uniform.max()


@pytest.mark.parametrize("spec", [INT8, QuantSpec("uint8"), QuantSpec("uint8", symmetric=False)], ids=str)
def test_relud_gaussian_is_hardly_clipped(spec):
    # A search that keeps the spike of zeros clips such a tensor to 1.76 of 4.70.
    x = draws("relu", 1_000_000)
    low, high = threshold(x, spec)
    assert low == 0
    assert high > 3.5
    assert (x > high).mean() < 3e-4


def test_exact_zeros_change_nothing():
    x = np.maximum(draws("gauss", 100_000), 0)
    positive = x[x > 0]
    assert threshold(x) == threshold(positive) == threshold(np.concatenate((np.zeros(10**6), positive)))


def test_q_is_not_made_from_p():
    # With the tail inside Q the first candidate would have KL = 0 for any data, and win.
    counts = counts_of(draws("uniform", 50_000))
    assert kl_threshold(counts, 1.0) > 2000


def test_lone_outlier_beyond_all_candidates_is_clipped():
    x = np.append(np.linspace(-1, 1, 100_001), 1000.0)
    assert threshold(x)[1] < 100


def test_values_far_from_zero_are_not_all_clipped():
    assert threshold(np.linspace(2.5, 3.5, 10_001))[1] > 3.4


def test_two_values_are_both_kept():
    assert threshold(np.tile([1.0, 2.0], 500))[1] == 2.0


@pytest.mark.parametrize(
    ("spec", "levels"),
    [
        (INT8, 128),
        (QuantSpec("uint8"), 256),
        (QuantSpec("int4"), 8),
        (QuantSpec("int8", symmetric=False), 256),
    ],
    ids=str,
)
def test_levels_are_the_codes_on_the_longer_side(spec, levels):
    x = torch.tensor(draws("laplace", 50_000), dtype=torch.float32).abs()
    s = observe(None, x, per_row=x.numel())
    counts = rebinned(s.histogram.magnitudes, s.histogram.width, s.max)
    assert KullbackLeibler().range(s, spec)[1] == kl_threshold(counts, s.max / 2048, levels)


def test_int16_clips_nothing():
    x = draws("student")
    assert threshold(x, QuantSpec("int16"))[1] == np.float32(x.max())


def test_scales_with_the_data():
    x = draws("laplace", 50_000)
    assert threshold(8 * x)[1] == 8 * threshold(x)[1]
