"""One pass, exact where it says so, of constant size."""

import json
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch

from tersor.errors import CalibrationError
from tersor.numerics import QuantSpec
from tersor.observers import OBSERVERS, merge, observe


def batches(n=6, shape=(4, 5, 6, 7), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * (1 + k) for k in range(n)]


def gathered(stream, **options):
    s = None
    for x in stream:
        s = observe(s, x, **options)
    return s


@pytest.mark.parametrize(
    ("shape", "axis", "channels"),
    [
        ((7,), 1, None),
        ((3, 5), 1, 5),
        ((3, 4, 5), -1, 5),
        ((3, 4, 5), 1, 4),
        ((3, 4, 5, 6), 1, 4),
        ((3, 4, 5, 6, 2), 1, 4),
        ((3, 4), 0, 3),
        ((3, 4), None, None),
        ((3, 4), 2, None),
        ((), 1, None),
    ],
)
def test_every_number_of_dimensions(shape, axis, channels):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    s = observe(None, x, channel_axis=axis)
    assert (s.min, s.max, s.count) == (float(x.min()), float(x.max()), x.numel())
    assert s.histogram.total == x.numel()
    if channels is None:
        assert s.channels is None
        return
    by_channel = x.movedim(axis, 0).reshape(channels, -1).double()
    assert torch.equal(s.channels.min, by_channel.amin(1).float())
    assert torch.equal(s.channels.max, by_channel.amax(1).float())
    torch.testing.assert_close(s.channels.mean, by_channel.mean(1), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(s.channels.var, by_channel.var(1, correction=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda x: x, lambda x: x.to(memory_format=torch.channels_last), lambda x: x.mT]
)
def test_layout_in_memory_changes_nothing(make):
    x = make(batches(1)[0])
    a, b = observe(None, x), observe(None, x.contiguous())
    assert np.array_equal(a.histogram.counts, b.histogram.counts)
    torch.testing.assert_close(a.channels.mean, b.channels.mean)
    torch.testing.assert_close(a.channels.var, b.channels.var)
    assert torch.equal(a.channels.max, b.channels.max)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_dtypes(dtype):
    x = (torch.arange(12).reshape(3, 4) % 5).to(dtype)
    s = observe(None, x)
    assert (s.min, s.max) == (0.0, 1.0 if dtype is torch.bool else 4.0)
    assert s.histogram.zeros == int((x == 0).sum())


def test_observing_changes_neither_input_nor_earlier_statistics():
    x = torch.randn(2, 3, requires_grad=True)
    s = observe(None, x)
    before = s.histogram.counts.copy(), s.min
    observe(s, torch.full((2, 3), 100.0))
    assert np.array_equal(before[0], s.histogram.counts)
    assert before[1] == s.min
    assert not s.channels.mean.requires_grad


def test_channels_of_varying_number_are_dropped():
    s = gathered([torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 4)])
    assert s.channels is None
    assert s.count == 24 + 40 + 40


def test_empty_batches_change_nothing():
    assert observe(None, torch.zeros(0, 3)) is None
    s = observe(None, torch.randn(2, 3))
    assert observe(s, torch.zeros(0, 3)) is s


@pytest.mark.parametrize(("value", "text"), [(float("nan"), "1 NaN and 0"), (float("-inf"), "0 NaN and 1")])
@pytest.mark.parametrize("axis", [1, -1, None])
def test_not_finite_says_what_and_how_many(value, text, axis):
    x = torch.zeros(2, 3, 4)
    x[1, 2, 3] = value
    with pytest.raises(CalibrationError, match=rf"{text} infinite of 24 values .*\(2, 3, 4\)"):
        observe(None, x, channel_axis=axis)


def test_complex_is_refused():
    with pytest.raises(CalibrationError, match="complex"):
        observe(None, torch.zeros(2, dtype=torch.complex64))


def test_options_must_agree():
    a = observe(None, torch.zeros(2, 2), momentum=0.9)
    with pytest.raises(CalibrationError, match=r"momentum 0\.9 and 0\.99"):
        observe(a, torch.zeros(2, 2))


def test_moving_average_is_no_plain_mean():
    low, high = -1.0, 1.0
    stream = batches()
    for k, x in enumerate(stream):
        low = float(x.min()) if k == 0 else 0.99 * low + 0.01 * float(x.min())
        high = float(x.max()) if k == 0 else 0.99 * high + 0.01 * float(x.max())
    assert gathered(stream).ema == pytest.approx((low, high), rel=1e-12)
    assert gathered(stream[::-1]).ema != pytest.approx((low, high), rel=1e-3)


def test_moving_average_merges_over_ordered_shards():
    stream = batches(9)
    whole = gathered(stream).ema
    parts = [gathered(stream[a:b]) for a, b in ((0, 2), (2, 3), (3, 9))]
    assert merge(merge(parts[0], parts[1]), parts[2]).ema == pytest.approx(whole, rel=1e-12)
    assert merge(parts[0], merge(parts[1], parts[2])).ema == pytest.approx(whole, rel=1e-12)


def bytes_of(value):
    """Bytes of all arrays and numbers inside a dataclass."""
    if is_dataclass(value):
        return sum(bytes_of(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, tuple):
        return sum(map(bytes_of, value))
    return value.nbytes if isinstance(value, (np.ndarray, torch.Tensor)) else 8


def test_size_does_not_grow_with_batches():
    def size(n):
        generator = torch.Generator().manual_seed(3)
        stream = (torch.randn(8, 3, 6, 6, generator=generator) for _ in range(n))
        return bytes_of(gathered(stream, keep=4))

    # After 1024 rows the fingerprints are full too.
    assert size(600) == size(150) > 2 * 8192 * 8


def test_ragged_last_batch():
    x = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    a, b = gathered(x.split(4)), gathered(x.split(10))
    assert np.array_equal(a.histogram.counts, b.histogram.counts)
    assert (a.rows, a.min, a.max) == (b.rows, b.min, b.max)


def test_subsample_is_the_same_however_batches_are_cut():
    x = torch.randn(8, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    a, b = gathered(x.split(8), per_row=1000), gathered(x.split(3), per_row=1000)
    assert a.histogram.total <= 8000
    assert np.array_equal(a.histogram.counts, b.histogram.counts)
    assert a.max == float(x.max())


@pytest.mark.parametrize("kind", ["gauss", "relu", "laplace", "channels"])
@pytest.mark.parametrize("spec", [QuantSpec("int8"), QuantSpec("uint8", symmetric=False)], ids=str)
def test_thresholds_of_the_subsample_are_within_one_percent(kind, spec):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 32, 112, 112, generator=generator)
    if kind == "relu":
        x = x.relu()
    elif kind == "laplace":
        x = torch.sign(x) * torch.empty_like(x).exponential_(generator=generator)
    elif kind == "channels":  # each channel of its own width, as after a convolution
        x = x * torch.linspace(0.2, 2, 32).reshape(1, -1, 1, 1)
    few, all_ = (gathered(x.split(16), per_row=n) for n in (2**17, x[0].numel()))
    assert few.histogram.total < 0.35 * all_.histogram.total
    for name in ("minmax", "ema", "percentile", "mse", "admm"):
        got, want = (OBSERVERS[name].range(s, spec) for s in (few, all_))
        assert got == pytest.approx(want, abs=0.01 * (want[1] - want[0])), name


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_no_value_changes_its_bin_however_many_are_zero(share):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(300_000, generator=generator) * (torch.rand(300_000, generator=generator) >= share)
    x[:3] = torch.tensor([1.0, 2.0**-13, 2.0**-14])  # an edge of a bin, the first edge, inside the first bin
    h = observe(None, x, per_row=len(x)).histogram
    wanted = np.histogram(x[x > 0].numpy(), h.edges)[0]
    assert np.array_equal(h.counts, wanted)
    assert h.zeros == int((x == 0).sum())


def test_halves_show_where_the_range_moved():
    calm, wild = torch.full((4, 2), 1.0), torch.full((4, 2), 10.0)
    for count in (1, 8, 100):
        first, second = gathered([calm] * count + [wild] * count).halves
        assert (first.high, second.high) == (1.0, 10.0)
        assert abs(first.rows - second.rows) <= count  # to a stretch or so of 16
    assert observe(None, torch.zeros(1, 3)).halves is None
    first, second = observe(None, torch.tensor([[1.0], [2.0], [3.0], [9.0]])).halves
    assert (first.high, second.high) == (2.0, 9.0)


def test_report_form_is_small_plain_and_complete():
    s = gathered(batches(3, (4, 3, 20, 20)))
    plain = json.loads(json.dumps(s.to_dict()))
    drawn = plain["histogram"]
    assert 32 < len(drawn["counts"]) <= 128
    assert sum(drawn["counts"]) + drawn["zeros"] == s.histogram.total
    assert drawn["low"] <= s.min
    assert drawn["low"] + drawn["width"] * len(drawn["counts"]) >= s.max
    assert observe(None, torch.zeros(2, 2)).to_dict()["histogram"]["counts"] == [0]


@pytest.mark.parametrize("axis", [1, None])
@pytest.mark.parametrize(
    "bend", [lambda x: x, lambda x: x**3, lambda x: x.relu(), lambda x: x + 50, lambda x: x.exp()]
)
def test_kurtosis_is_scipys(bend, axis):
    from scipy.stats import kurtosis

    parts = [bend(x) for x in batches(3, (50, 40))]
    exact = kurtosis(torch.cat(parts).double().ravel(), fisher=False)
    assert gathered(parts, channel_axis=axis).kurtosis == pytest.approx(exact, rel=2e-3)


def test_kurtosis_of_a_constant_and_of_one_outlier():
    assert observe(None, torch.full((4, 4), 1.7)).kurtosis is None
    x = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    x[7, 7] = 3000.0
    # One among n values that outweighs all others: n, less what the others hold.
    assert observe(None, x).kurtosis == pytest.approx(x.numel(), rel=0.01)


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (2, 100, 3, 3), (2, 3, 31, 1), (1, 16, 64, 64), (2, 5, 400, 160)])
def test_the_layout_in_memory_changes_no_statistics(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    last = x.contiguous(memory_format=torch.channels_last)
    one, two = (observe(None, t, per_row=x.numel()) for t in (x, last))
    assert np.array_equal(one.histogram.counts, two.histogram.counts)
    assert (one.min, one.max, one.course) == (two.min, two.max, two.course)
    assert torch.equal(one.channels.min, two.channels.min)
    assert torch.equal(one.channels.max, two.channels.max)
    torch.testing.assert_close(one.channels.total, two.channels.total, rtol=0, atol=1e-5 * x[0, 0].numel())
    torch.testing.assert_close(one.channels.squares, two.channels.squares, rtol=1e-5, atol=0)
