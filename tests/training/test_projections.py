"""Projections on quantized sets beyond what all share: sorting, alternating least squares, BatchNorm, formats."""

from itertools import pairwise, product

import pytest
import torch
from torch import nn

from tersor.errors import NumericsError, RecipeError
from tersor.network.capture import capture
from tersor.network.rewrites.fold_batchnorm import FoldBatchNorm
from tersor.numerics import QuantSpec, qparams, quantize_tensor
from tersor.solvers import LayerProblem, Rtn
from tersor.solvers.rtn import granules, mse_range
from tersor.tables import made
from tersor.training.proximal import L1, PROXIMAL, Binary, Bits, PowerOfTwo, Projection, Ternary
from tersor.training.proximal.bits import alternate
from tersor.training.proximal.levels import best_scale

SETS = [name for name, entry in PROXIMAL.items() if isinstance(entry, Projection)]


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error(weight, found):
    return float((weight - found).double().square().sum())


def test_ternary_against_every_ternary_vector():
    vectors = torch.tensor(list(product([-1, 0, 1], repeat=8)), dtype=torch.float64)
    for seed in range(10):
        weight = drawn(8, seed=seed, dtype=torch.float64)
        alpha = ((vectors @ weight) / vectors.square().sum(1).clamp(min=1)).clamp(min=0)
        least = (weight - alpha[:, None] * vectors).square().sum(1).min()
        assert error(weight, Ternary()(weight[None])[0]) == pytest.approx(float(least), rel=1e-6)


def test_ternary_is_nearer_than_the_threshold_of_ternary_weight_networks():
    weight = drawn(50, 64).pow(3)
    large = weight.abs() > 0.7 * weight.abs().mean(1, keepdim=True)
    alpha = (weight.abs() * large).sum(1, keepdim=True) / large.sum(1, keepdim=True)
    rows = (weight - alpha * large * weight.sign()).square().sum(1)
    assert ((weight - Ternary()(weight)).square().sum(1) <= rows + 1e-5).all()
    assert error(weight, Ternary()(weight)) < 0.9 * rows.sum()


def test_the_scale_by_sorting_agrees_with_the_formula_of_ternary():
    rows = drawn(20, 33, dtype=torch.float64)
    size = rows.abs().sort(1, descending=True).values.cumsum(1)
    count = torch.arange(1, 34)
    k = (size.square() / count).argmax(1, keepdim=True)
    assert torch.allclose(best_scale(rows, torch.ones(1).double()), (size / count).gather(1, k).squeeze(1))


@pytest.mark.parametrize("spec", [
    QuantSpec("int8", "channel"), QuantSpec("int4", "group:5", symmetric=False), QuantSpec("uint4", symmetric=False),
], ids=str)  # fmt: skip
def test_alternating_least_squares_never_increases_the_error(spec):
    weight = drawn(6, 40).pow(3)
    low, high = mse_range(weight, spec) if spec.granularity.kind != "group" else (-1.0, 2.0)
    scale, zero_point = qparams(low, high, spec)
    rows = granules(weight, spec)
    shape = spec.granularity.scale_shape(weight.shape)
    scale, zero_point = (t.broadcast_to(shape).reshape(-1, 1) for t in (scale, zero_point))
    errors = []
    for rounds in range(6):
        found = alternate(rows, scale, zero_point, spec, rounds)
        q = (rows / found).round().add(zero_point).clamp(spec.low, spec.high)
        errors.append((rows - (q - zero_point) * found).square().sum(1))
    for before, after in pairwise(errors):
        assert (after <= before * (1 + 1e-5)).all()
    assert errors[-1].sum() < errors[0].sum()


@pytest.mark.parametrize("spec", [
    QuantSpec("int8", "channel"), QuantSpec("int4", "channel", symmetric=False), QuantSpec("int3", "group:16"),
    QuantSpec("int8", "tensor", symmetric=False),
], ids=str)  # fmt: skip
def test_bits_are_no_farther_than_rounding_over_the_best_range(spec):
    for seed in range(2):
        weight = drawn(8, 64, seed=seed).pow(3)
        nearest = Rtn("mse")(LayerProblem("fc", weight, spec)).qtensor.dequantize()
        assert error(weight, Bits().qtensor(weight, spec).dequantize()) <= error(weight, nearest) * (1 + 1e-5)


def test_binary_is_what_numerics_quantizes_to():
    weight = drawn(4, 3, 5)
    found, known = Binary("group:2").qtensor(weight), quantize_tensor(weight, QuantSpec("binary", "group:2"))
    assert torch.equal(found.codes, known.codes)
    assert torch.equal(found.scale, known.scale)


@pytest.mark.parametrize(("bits", "format", "levels"), [(2, "int2", 1), (3, "int4", 3), (4, "int8", 7)])
def test_powers_of_two_are_codes_of_the_smallest_format(bits, format, levels):
    projection = PowerOfTwo(bits)
    assert str(projection.spec.format) == format
    assert len(projection.levels) == levels
    codes = projection.qtensor(drawn(4, 200)).codes
    assert set(codes.abs().unique().tolist()) <= {0, *(2**k for k in range(levels))}


def test_two_bits_of_each_kind_are_ternary():
    weight = drawn(5, 40)
    for other in (Bits(2), PowerOfTwo(2)):
        assert torch.equal(other(weight), Ternary()(weight))
        assert torch.equal(Ternary().qtensor(weight, other.spec).codes, other.qtensor(weight).codes)


@pytest.mark.parametrize(("entry", "spec", "text"), [
    (Binary(), QuantSpec("int4"), "Binary cannot be stored as int4 .*: its only format is binary"),
    (Ternary(), QuantSpec("binary"), "it needs symmetric codes with a zero"),
    (Ternary(), QuantSpec("int4", symmetric=False), "it needs symmetric codes with a zero"),
    (PowerOfTwo(4), QuantSpec("int4"), "its largest code is 7, but 64 is needed"),
    (Bits(), QuantSpec("ternary"), "it needs integer codes"),
    (Bits(), QuantSpec("uint4"), "it has no negative values"),
])  # fmt: skip
def test_a_format_that_cannot_hold_the_set_is_refused(entry, spec, text):
    with pytest.raises(RecipeError, match=text):
        entry.qtensor(drawn(3, 4), spec)


def conv_and_norm():
    """With negative γ, too."""
    conv, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)
    with torch.no_grad():
        conv.weight.copy_(drawn(5, 3, 3, 3))
        norm.weight.copy_(torch.tensor([0.5, -2.0, 1.0, -0.1, 3.0]))
        norm.running_var.copy_(torch.tensor([0.1, 1.0, 4.0, 2.0, 0.5]))
    return nn.Sequential(conv, norm).eval(), (norm.weight / (norm.running_var + norm.eps).sqrt()).reshape(5, 1, 1, 1)


def test_the_factor_of_a_batchnorm_is_what_folding_multiplies_by():
    model, factor = conv_and_norm()
    network = FoldBatchNorm()(capture(model, (torch.zeros(1, 3, 6, 6),)))
    (weight,) = (t for _, t in network.tensors() if t.ndim == 4)
    assert torch.allclose(weight, model[0].weight * factor, rtol=1e-6)


@pytest.mark.parametrize("granularity", ["channel", "group:2"])
@pytest.mark.parametrize("name", SETS)
def test_projecting_before_a_batchnorm_is_folded_is_projecting_after(name, granularity):
    """The codes differ by the sign of γ alone."""
    projection = made(PROXIMAL, {name: {"granularity": granularity}}, "proximal operator")
    model, factor = conv_and_norm()
    weight = model[0].weight.detach()
    before, after = projection(weight) * factor, projection.qtensor(weight * factor)
    assert torch.allclose(before, after.dequantize(), rtol=1e-5, atol=1e-7)
    assert torch.equal(after.codes, projection.qtensor(weight).codes * factor.sign())
    assert torch.equal(projection.qtensor(before).codes, after.codes)


def test_stochastic_rounding_of_a_plan_does_not_reach_a_projection():
    spec = QuantSpec("int4", "channel", rounding="stochastic")
    weight = drawn(4, 30)
    for entry in (Ternary(), Bits(), PowerOfTwo(3)):
        found, nearest = (entry.qtensor(weight, s).dequantize() for s in (spec, spec.with_(rounding="nearest")))
        assert torch.equal(found, nearest)
    binary = Binary().qtensor(weight, QuantSpec("binary", "channel", rounding="stochastic"))
    assert torch.equal(binary.dequantize(), Binary()(weight))


def test_l1_minimizes_its_cost():
    """On a grid around each weight."""
    weight, strength = drawn(200), 0.3
    grid = torch.linspace(-4, 4, 8001)[:, None]
    best = grid[((grid - weight).square() / 2 + strength * grid.abs()).argmin(0), 0]
    assert torch.allclose(L1()(weight, strength), best, atol=1.1e-3)
    assert (L1()(weight, strength) == 0).float().mean() == ((weight.abs() <= strength).float().mean())


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_makes_no_sense_is_refused(strength):
    with pytest.raises(NumericsError, match="the strength of an L1 step is"):
        L1()(drawn(3), strength)
