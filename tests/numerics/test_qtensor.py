"""Scales, codes and back, against exact fractions and brute force."""

from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numerics.strategies import CODED, FLOATS, INTEGERS, cases, tensors
from pretended import accelerator

from tersor.errors import NumericsError
from tersor.numerics import (
    FORMATS,
    QTensor,
    QuantSpec,
    expand,
    qparams,
    quantize,
    quantize_tensor,
)

EVERY = [*CODED, "binary", *FLOATS]


def check_invariants(q: QTensor) -> None:
    """What holds of every QTensor, whoever made it."""
    assert q.codes.dtype == q.spec.format.dtype
    assert tuple(q.scale.shape) == tuple(q.zero_point.shape) == q.spec.granularity.scale_shape(q.shape)
    assert q.scale.dtype == q.zero_point.dtype == torch.float32
    assert (q.scale >= torch.finfo(getattr(torch, q.spec.scale_dtype)).smallest_normal).all()
    assert q.scale.isfinite().all()
    assert torch.equal(q.scale.to(getattr(torch, q.spec.scale_dtype)).float(), q.scale)
    assert torch.equal(q.zero_point, q.zero_point.round())
    assert ((q.zero_point >= q.spec.low) & (q.zero_point <= q.spec.high)).all()
    codes = q.codes.double()
    assert ((codes >= q.spec.low) & (codes <= q.spec.high)).all()


@given(cases([*EVERY]))
def test_invariants(case):
    check_invariants(quantize_tensor(case[1], case[0]))


@given(cases())
@settings(max_examples=200)
def test_the_error_is_at_most_half_a_step(case):
    spec, x = case
    q = quantize_tensor(x, spec)
    scale = expand(q.scale, x.shape, spec.block).double()
    zero_point = expand(q.zero_point, x.shape, spec.block)
    # Quotient and product are each rounded once to 24 bits, hence a part of the code more than one half.
    slack = ((q.codes.double() - zero_point).abs() + 1) * 2.0**-22
    assert ((q.dequantize().double() - x.double()).abs() <= scale * (0.5 + slack)).all()


@given(cases(["binary"]))
def test_binary_is_wrong_by_half_its_step_at_most_inside_its_range(case):
    spec, x = case
    largest = x.abs().amax()
    q = quantize_tensor(x, spec, low=-largest, high=largest)
    scale = expand(q.scale, x.shape, spec.block)
    assert ((q.dequantize() - x).abs() <= scale * (1 + 2.0**-22)).all()
    assert set(q.codes.unique().tolist()) <= {-1, 1}


@given(cases(), st.floats(-1e3, 0.0), st.floats(0.0, 1e3))
def test_codes_are_those_of_exact_fractions(case, low, high):
    spec, x = case
    scale, zero_point = qparams(low if spec.format.signed or not spec.symmetric else 0.0, high, spec)
    codes = quantize(x, scale, zero_point, spec)
    for value, code in zip(x.flatten().tolist(), codes.flatten().tolist(), strict=True):
        quotient = Fraction(value) / Fraction(scale.item())
        exact = min(max(round(quotient) + int(zero_point.item()), spec.low), spec.high)
        if code != exact:
            # Only float32's quotient itself, right to 1 part in 2^24, may reach the tie from beside it.
            assert abs(code - exact) == 1
            assert abs(abs(quotient - round(quotient)) - Fraction(1, 2)) <= abs(quotient) * Fraction(1, 2**24)


def test_the_quotient_is_a_division_beside_every_tie():
    # Where multiplying by 1/scale, as PyTorch's fused kernel does, would decide otherwise.
    scale = torch.rand(500, 1, generator=torch.Generator().manual_seed(0)) + 0.01
    x = (torch.arange(-127, 127) + 0.5) * scale
    # Rounding a quotient to 53 bits and then to 24 is rounding it to 24 (Figueroa 1995).
    exact = (x.double() / scale.double()).float().round().clamp(-127, 127)
    spec = QuantSpec("int8", "channel")
    assert torch.equal(quantize(x, scale, torch.zeros_like(scale), spec).float(), exact)
    for row, one, codes in zip(x[:20], scale[:20], exact[:20], strict=True):
        there = torch.ops.tersor.fake_quantize(row, one, torch.zeros(1), -127, 127, 0)
        assert torch.equal(there, codes * one)
    assert not torch.equal((x * (1 / scale)).round(), exact)


def test_ties_go_to_even():
    x = torch.arange(-3.5, 4.0) / 4
    codes = quantize(x, torch.tensor(0.25), torch.tensor(0.0), QuantSpec("int8"))
    assert codes.tolist() == [-4, -2, -2, 0, 0, 2, 2, 4]


@given(cases())
def test_dequantized_values_are_the_nearest_float32_to_the_exact_products(case):
    spec, x = case
    q = quantize_tensor(x, spec)
    scale, zero_point = (expand(t, x.shape, spec.block) for t in (q.scale, q.zero_point))
    # A code has 17 bits at most and a scale 24: float64 holds the product exactly.
    exact = (q.codes.double() - zero_point.double()) * scale.double()
    assert torch.equal(q.dequantize(), exact.float())


@given(cases(EVERY))
def test_quantizing_again_changes_nothing(case):
    spec, x = case
    q = quantize_tensor(x, spec)
    again = quantize(q.dequantize(), q.scale, q.zero_point, spec)
    assert torch.equal(again.double(), q.codes.double())


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_matrix_products_agree_to_the_last_bit(name):
    generator = torch.Generator().manual_seed(0)
    wspec = QuantSpec(name, "channel")
    w = torch.randn(6, 40, generator=generator)
    w = w if wspec.format.signed else w.abs()
    x = torch.randn(5, 40, generator=generator)
    xspec = QuantSpec("uint8", symmetric=False)
    # Scales that are powers of two make every product and sum exact in float64.
    qw = quantize_tensor(w, wspec)
    qw = QTensor(qw.codes, 2.0 ** qw.scale.log2().ceil(), qw.zero_point, wspec)
    scale, zero_point = torch.tensor(2.0**-5), torch.tensor(117.0)
    qx = QTensor(quantize(x, scale, zero_point, xspec), scale, zero_point, xspec)
    integers = (qx.codes.long() - 117) @ qw.codes.long().t()
    floats = qx.dequantize().double() @ qw.dequantize().double().t()
    assert torch.equal(floats, integers.double() * qw.scale.flatten() * scale)


def test_what_has_no_codes_is_refused():
    spec = QuantSpec("int8")
    with pytest.raises(NumericsError, match="nan"):
        quantize_tensor(torch.tensor([1.0, float("nan")]), spec)
    with pytest.raises(NumericsError, match="contains NaN"):
        quantize(torch.tensor([float("nan")]), torch.tensor(1.0), torch.tensor(0.0), spec)
    with pytest.raises(NumericsError, match="empty"):
        quantize_tensor(torch.zeros(0, 3), spec)
    with pytest.raises(NumericsError, match="symmetric=False"):
        quantize_tensor(torch.tensor([-1.0, 1.0]), QuantSpec("uint8"))
    with pytest.raises(NumericsError, match="both"):
        quantize_tensor(torch.ones(2), spec, low=0.0)


@given(cases(EVERY))
def test_a_packed_tensor_comes_back(case):
    spec, x = case
    q = quantize_tensor(x, spec)
    packed = q.packed()
    back = QTensor.unpacked(packed, q.shape, q.scale, q.zero_point, spec)
    assert torch.equal(back.codes.double(), q.codes.double())
    assert torch.equal(back.dequantize(), q.dequantize())
    scales = q.scale.numel() * (4 if spec.scale_dtype == "float32" else 2)
    zeros = 0 if spec.symmetric else -(-q.zero_point.numel() * spec.format.bits // 8)
    assert q.nbytes == packed.numel() + scales + zeros
    assert packed.numel() == -(-x.numel() * spec.format.bits // 8)


@given(cases(["binary"]))
def test_binary_levels_are_the_best_there_are(case):
    spec, x = case
    q = quantize_tensor(x, spec.with_(scale_dtype="float32"))
    best = (q.dequantize().double() - x.double()).square().sum()
    for factor in (0.9, 0.99, 1.01, 1.1):
        other = QTensor(q.codes, q.scale * factor, q.zero_point, q.spec)
        assert best <= (other.dequantize().double() - x.double()).square().sum() * (1 + 1e-6) + 1e-30


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_fp8_takes_the_nearest_of_all_its_numbers_and_saturates(name):
    numbers = torch.arange(256).to(torch.uint8).view(FORMATS[name].dtype).double()
    numbers = numbers[numbers.isfinite()]
    generator = torch.Generator().manual_seed(1)
    x = torch.cat([torch.randn(500, generator=generator) * 10.0**power for power in range(-7, 7)])
    got = quantize(x, torch.tensor(1.0), torch.tensor(0.0), QuantSpec(name)).double()
    nearest = (x.double()[:, None] - numbers).abs().min(1).values
    assert torch.equal((got - x.double()).abs(), nearest)
    assert got.abs().max() == FORMATS[name].high
    assert torch.isin(got, numbers).all()


SPREAD = torch.arange(-19, 20) / 10


@pytest.mark.parametrize("name", [*INTEGERS, "ternary", "binary", "fp8_e4m3", "fp8_e5m2", "fp16", "bf16"])
def test_stochastic_rounding_is_unbiased_and_between_neighbours(name):
    spec = QuantSpec(name, symmetric=name.startswith(("b", "t", "f")), rounding="stochastic")
    scale, zero_point = qparams(-2.0, 2.0, spec)
    lowest, highest = ((bound - zero_point.double()) * scale for bound in (spec.low, spec.high))
    x = SPREAD[(lowest <= SPREAD) & (highest >= SPREAD)]
    draws = 3000
    rows = quantize(x.expand(draws, -1), scale, zero_point, spec, torch.Generator().manual_seed(7)).double()
    values = (rows - zero_point) * scale
    below, above = values.amin(0), values.amax(0)
    step = 2 * scale.item() if name == "binary" else scale.item()
    if spec.format.kind == "float":
        exponent = (x.double().abs() / scale).log2().floor().clamp(min=spec.format.smallest_exponent)
        step = 2.0 ** (exponent - spec.format.mantissa) * scale.item()
    assert (above - below <= step * (1 + 1e-6)).all()
    assert ((below <= x + 1e-6) & (x <= above + 1e-6)).all()
    # A draw's deviation is at most half a step; 5 of the mean's standard deviations.
    assert ((values.mean(0) - x.double()).abs() <= 5 * 0.5 * step / draws**0.5 + 1e-7).all()
    # Rounding to nearest, whose mean stays off, would fail what stochastic rounding passed.
    if spec.format.bits <= 4:
        nearest = quantize(x, scale, zero_point, spec.with_(rounding="nearest")).double()
        assert ((nearest - zero_point) * scale - x.double()).abs().max() > 5 * 0.5 * step / draws**0.5


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "fp16"])
def test_stochastic_rounding_is_unbiased_below_the_smallest_normal_number(name):
    one = FORMATS[name]
    step, draws = 2.0 ** (one.smallest_exponent - one.mantissa), 3000
    spec, generator = QuantSpec(name, rounding="stochastic"), torch.Generator().manual_seed(0)
    x = torch.tensor([0.2, 1.3, 2.6]) * step
    codes = quantize(x.expand(draws, -1), torch.tensor(1.0), torch.tensor(0.0), spec, generator).double()
    assert codes.amin(0).tolist() == [0, step, 2 * step]
    assert codes.amax(0).tolist() == [step, 2 * step, 3 * step]
    assert ((codes.mean(0) - x.double()).abs() <= 5 * 0.5 * step / draws**0.5).all()


def test_stochastic_rounding_is_repeated_by_its_seed_alone():
    spec = QuantSpec("int4", rounding="stochastic")
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    one, same, other = (quantize_tensor(SPREAD, spec, generator=each).codes for each in generators)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with pytest.raises(NumericsError, match="generator"):
        quantize_tensor(SPREAD, spec)


@given(st.sampled_from(CODED), st.data())
@example("int8", None)
def test_stochastic_rounding_leaves_what_is_exact(name, data):
    spec = QuantSpec(name, rounding="stochastic")
    x = SPREAD if data is None else data.draw(tensors(spec))
    q = quantize_tensor(x.abs(), spec.with_(rounding="nearest"))
    again = quantize(q.codes.float(), torch.ones(()), torch.zeros(()), spec, torch.Generator().manual_seed(0))
    assert torch.equal(again, q.codes)


def test_a_parameter_is_quantized_without_a_gradient():
    for name in ("int8", "fp8_e4m3"):
        q = quantize_tensor(torch.nn.Parameter(torch.randn(3, 4)), QuantSpec(name, "channel"))
        assert not any(t.requires_grad for t in (q.codes, q.scale, q.zero_point))


def test_chance_rounds_alike_on_every_device():
    x, spec = torch.linspace(-1, 1, 50), QuantSpec("int4", rounding="stochastic")
    here = quantize_tensor(x, spec, generator=torch.Generator().manual_seed(0))
    with accelerator() as device:
        there = quantize_tensor(x.to(device), spec, generator=torch.Generator().manual_seed(0))
        assert there.codes.device == device
        there = there.to("cpu")
    assert torch.equal(here.codes, there.codes)
