"""Every entry of OBSERVERS keeps the same promises."""

import math
import time
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch

from tersor.errors import CalibrationError
from tersor.numerics import QuantSpec, qparams
from tersor.observers import OBSERVERS, MinMax, MovingAverage, Percentile, merge, observe
from tersor.recipe import Quantization, Recipe

SPECS = [
    QuantSpec("int8"),
    QuantSpec("uint8", symmetric=False),
    QuantSpec("int8", symmetric=False),
    QuantSpec("int4"),
    QuantSpec("int2", symmetric=False),
    QuantSpec("int16"),
]


@pytest.fixture(params=sorted(OBSERVERS))
def name(request):
    return request.param


@pytest.fixture
def observer(name):
    return OBSERVERS[name]


@pytest.fixture(params=SPECS, ids=str)
def spec(request):
    return request.param


def data(rows=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, 10, 10, generator=generator) * torch.rand(rows, 1, 1, 1, generator=generator)


def gathered(stream):
    s = None
    for x in stream:
        s = observe(s, x)
    return s


def test_split_batches_equal_one_batch(observer, spec):
    one, many = gathered(data().split(24)), gathered(data().split(5))
    if observer.order_dependent:
        assert observer.range(one, spec) != observer.range(many, spec)
    else:
        assert observer.range(one, spec) == observer.range(many, spec)


def test_merge_is_associative(observer, spec):
    a, b, c = (gathered(data(8, seed).split(4)) for seed in range(3))
    left, right = merge(merge(a, b), c), merge(a, merge(b, c))
    # The moving average is associative in exact arithmetic; the others in floating point, too.
    assert observer.range(left, spec) == pytest.approx(observer.range(right, spec), rel=1e-12)
    if not observer.order_dependent:
        assert observer.range(left, spec) == observer.range(right, spec)


def test_merge_is_commutative_unless_it_says_otherwise(observer, spec):
    a, b = gathered(data(8, 1).split(2)), gathered((3 * data(8, 2)).split(2))
    there, back = observer.range(merge(a, b), spec), observer.range(merge(b, a), spec)
    assert (there != back) if observer.order_dependent else (there == back)


def test_two_workers_equal_one(observer, spec):
    stream = data().split(4)
    workers = merge(gathered(stream[:3]), gathered(stream[3:]))
    assert observer.range(workers, spec) == pytest.approx(observer.range(gathered(stream), spec), rel=1e-12)


@pytest.mark.parametrize("value", [3.0, -3.0, 1e-30, 1e30])
def test_constant(observer, spec, value):
    low, high = observer.range(gathered([torch.full((4, 3), value)]), spec)
    assert low <= 0 <= high
    assert max(-low, high) == pytest.approx(abs(value), rel=1e-2)
    scale, zero_point = qparams(low, high, spec)
    back = ((value / scale + zero_point).round().clamp(spec.low, spec.high) - zero_point) * scale
    assert float(back) == pytest.approx(value, rel=1e-2)


def test_all_zero(observer, spec):
    assert observer.range(gathered([torch.zeros(4, 3)]), spec) == (0, 0)


def test_single_element(observer, spec):
    low, high = observer.range(gathered([torch.tensor([2.0])]), spec)
    assert low == 0
    assert high == pytest.approx(2.0, rel=1e-2)


@pytest.mark.parametrize("sign", [1, -1])
def test_one_sided(observer, spec, sign):
    low, high = observer.range(gathered([sign * data().abs()]), spec)
    assert (low == 0 and high > 0) if sign > 0 else (high == 0 and low < 0)


def test_range_is_finite_holds_zero_and_stays_near_what_was_seen(observer, spec):
    s = gathered(data().split(6))
    low, high = observer.range(s, spec)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low <= 0 <= high
    width = s.max - s.min
    # A range found on a grid may end a step beyond the last value.
    assert low >= s.min - width / (spec.high - spec.low)
    assert high <= s.max + width / (spec.high - spec.low)


def test_nan_never_gets_in():
    with pytest.raises(CalibrationError, match="NaN"):
        gathered([data(), torch.tensor([[[[float("nan")]]]])])


def test_ranges_per_channel_are_refused(observer):
    with pytest.raises(CalibrationError, match="granularity"):
        observer.range(gathered([data()]), QuantSpec("int8", "channel"))


def test_float_formats_have_a_range_or_are_refused(observer):
    s, fp8 = gathered([data()]), QuantSpec("fp8_e4m3")
    if isinstance(observer, (MinMax, MovingAverage, Percentile)):
        low, high = observer.range(s, fp8)
        assert low < 0 < high
    else:
        with pytest.raises(CalibrationError, match="use minmax"):
            observer.range(s, fp8)


def test_range_takes_milliseconds(observer, spec):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((32, 2000)).astype(np.float32))
    s = gathered([x])
    observer.range(s, spec)
    begin = time.process_time()
    for _ in range(3):
        observer.range(s, spec)
    # Milliseconds; the bound is loose for a busy machine, and an O(bins²) loop takes half a second.
    assert (time.process_time() - begin) / 3 < 0.1


def test_options_are_a_frozen_dataclass_that_a_recipe_writes_and_reads(name, observer):
    with pytest.raises((FrozenInstanceError, AttributeError)):
        observer.order_dependent = None
    options = {f.name: getattr(observer, f.name) for f in fields(observer)}
    recipe = Recipe(activations=Quantization(range={name: options}))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.activations.observer() == observer
    assert recipe.activations.when == "static"
