"""Every entry of PROXIMAL keeps the same promises."""

from dataclasses import FrozenInstanceError, fields, is_dataclass
from itertools import product

import pytest
import torch

from tersor.errors import NumericsError, RecipeError
from tersor.numerics import QTensor, QuantSpec, expand
from tersor.tables import made
from tersor.training.proximal import PROXIMAL, Bits, PowerOfTwo, Projection

SETS = sorted(name for name, entry in PROXIMAL.items() if isinstance(entry, Projection))
VARIANTS = {
    **{name: PROXIMAL[name] for name in SETS},
    "bits 2": Bits(2), "bits 3": Bits(3), "bits 8": Bits(8), "bits 3 asymmetric": Bits(3, symmetric=False),
    "power-of-two 2": PowerOfTwo(2), "power-of-two 3": PowerOfTwo(3),
}  # fmt: skip
EXACT = [name for name in VARIANTS if name not in ("bits 8", "bits 3 asymmetric")]
GRANULARITIES = ["tensor", "channel", "channel:1", "group:3", "filters:2"]


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=sorted(PROXIMAL))
def proximal(request):
    return PROXIMAL[request.param]


@pytest.fixture(params=sorted(VARIANTS))
def projection(request):
    return VARIANTS[request.param]


@pytest.fixture(params=EXACT)
def exact(request):
    return VARIANTS[request.param]


def codes_of(projection):
    """Every code of the set."""
    if isinstance(projection, PowerOfTwo):
        return [0, *projection.levels, *(-level for level in projection.levels)]
    spec = projection.spec
    return [c for c in range(spec.low, spec.high + 1) if c or spec.format.name != "binary"]


# --- every entry ---


def test_it_is_a_frozen_dataclass_with_options_of_a_table(proximal):
    assert is_dataclass(proximal)
    with pytest.raises((FrozenInstanceError, AttributeError)):
        proximal.granularity = "tensor"
    (name,) = [name for name, entry in PROXIMAL.items() if entry is proximal]
    options = {f.name: getattr(proximal, f.name) for f in fields(proximal)}
    assert made(PROXIMAL, {name: options}, "proximal operator") == proximal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 3)])
def test_shape_dtype_and_weight_are_kept(proximal, dtype, shape):
    weight = torch.nn.Parameter(drawn(*shape).to(dtype))
    before = weight.detach().clone()
    found = proximal(weight, 0.3)
    assert (found.shape, found.dtype, found.device) == (weight.shape, dtype, weight.device)
    assert not found.requires_grad
    assert torch.equal(weight, before)
    assert not torch.equal(found, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_weight_on_a_gpu_stays_there():
    weight = drawn(3, 4)
    for proximal in PROXIMAL.values():
        found = proximal(weight.cuda(), 0.3)
        assert found.is_cuda
        assert torch.allclose(found.cpu(), proximal(weight, 0.3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(proximal, value):
    weight = drawn(3, 4)
    weight[1, 2] = value
    with pytest.raises(NumericsError, match=r"^1 of 12 values of a weight are NaN or infinite"):
        proximal(weight, 0.1)


def test_an_empty_weight_is_refused(proximal):
    with pytest.raises(NumericsError, match=r"shape \(0, 4\) is empty"):
        proximal(torch.zeros(0, 4), 0.1)


def test_zero_stays_zero(proximal):
    found = proximal(torch.zeros(3, 4), 0.1)
    assert found.abs().max() <= torch.finfo(torch.float32).smallest_normal


def test_it_is_nearer_than_other_tensors_of_the_kind(proximal):
    """Proximal operators minimize ½‖v − w‖² + strength·g(v): moving away from the result never lowers it."""
    weight, strength = drawn(4, 6), 0.2

    penalties = {"l1": lambda v: v.abs().sum(), "group-lasso": lambda v: v.flatten(1).norm(dim=1).sum()}
    (name,) = [name for name, entry in PROXIMAL.items() if entry is proximal]

    def cost(v):
        own = penalties[name](v) * strength if name in penalties else 0.0
        return float((v - weight).square().sum() / 2 + own)

    least = cost(proximal(weight, strength))
    for seed in range(20):
        other = proximal(weight + 0.3 * drawn(4, 6, seed=seed + 1), strength)
        assert least <= cost(other) + 1e-6


# --- projections ---


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_values_are_those_of_the_codes_and_in_the_set(projection, granularity):
    weight = drawn(4, 7, 3)
    qtensor = projection.qtensor(weight, projection.spec.with_(granularity=granularity))
    assert isinstance(qtensor, QTensor)
    assert str(qtensor.spec.granularity) == granularity
    assert qtensor.scale.shape == qtensor.spec.granularity.scale_shape(weight.shape)
    assert set(qtensor.codes.unique().tolist()) <= set(codes_of(projection))
    assert torch.equal(projection(weight), projection.qtensor(weight).dequantize())


def test_every_code_is_the_nearest_of_the_set_for_its_scale(projection):
    weight = drawn(4, 30)
    q = projection.qtensor(weight)
    values = (torch.tensor(codes_of(projection)) - q.zero_point.unsqueeze(2)) * q.scale.unsqueeze(2)
    least = (weight.unsqueeze(2) - values).abs().min(2).values
    assert torch.allclose((weight - q.dequantize()).abs(), least, atol=1e-6)


def test_no_tensor_of_the_set_is_nearer(exact):
    """Brute force: every vector of codes, each with its best scale."""
    codes = torch.tensor(list(product(codes_of(exact), repeat=3))).double()
    power = codes.square().sum(1).clamp(min=1)
    for seed in range(8):
        weight = drawn(3, seed=seed, dtype=torch.float64) * torch.logspace(0, -seed / 3, 3)
        gain = (codes @ weight).clamp(min=0).square() / power
        found = exact(weight[None])[0].double()
        least = float(weight.square().sum() - gain.max())
        assert float((weight - found).square().sum()) == pytest.approx(least, rel=1e-4)


def test_no_scale_of_a_fine_search_is_nearer(exact):
    weight = drawn(1, 40, seed=3)
    q = exact.qtensor(weight)
    codes = torch.tensor(codes_of(exact)).float()
    grid = torch.linspace(0.02, 4, 2000)[:, None, None] * weight.abs().max() / codes.abs().max()
    errors = (weight.reshape(1, -1, 1) - grid * codes).square().min(2).values.sum(1)
    assert float((weight - q.dequantize()).square().sum()) <= float(errors.min()) * (1 + 1e-5)


def test_it_is_idempotent(projection):
    weight = drawn(8, 60)
    once, twice = projection.qtensor(weight), projection.qtensor(projection(weight))
    assert torch.equal(once.codes, twice.codes)
    assert torch.allclose(once.scale, twice.scale, rtol=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_it_is_equivariant_to_factors_of_each_scale(projection, granularity):
    spec = projection.spec.with_(granularity=granularity)
    weight = drawn(4, 7)
    factor = drawn(*spec.granularity.scale_shape(weight.shape), seed=1).exp()
    scaled = projection.qtensor(weight * expand(factor, weight.shape, spec.block), spec)
    plain = projection.qtensor(weight, spec)
    assert torch.equal(scaled.codes, plain.codes)
    assert torch.allclose(scaled.scale, plain.scale * factor, rtol=1e-5)


def test_each_scale_depends_on_its_own_weights_alone(projection):
    weight = drawn(4, 9)
    other = weight.clone()
    other[1:] = drawn(3, 9, seed=5)
    assert torch.equal(projection(weight)[0], projection(other)[0])


def test_a_scale_of_half_precision_is_the_one_that_codes_are_found_with(projection):
    spec = projection.spec.with_(scale_dtype="float16")
    weight = drawn(4, 30)
    q = projection.qtensor(weight, spec)
    assert torch.equal(q.scale, q.scale.half().float())
    values = (torch.tensor(codes_of(projection)) - q.zero_point.unsqueeze(2)) * q.scale.unsqueeze(2)
    least = (weight.unsqueeze(2) - values).abs().min(2).values
    assert torch.allclose((weight - q.dequantize()).abs(), least, atol=1e-6)


def test_codes_pack_into_the_bits_of_the_format(projection):
    q = projection.qtensor(drawn(4, 16))
    back = QTensor.unpacked(q.packed(), q.shape, q.scale, q.zero_point, q.spec)
    assert torch.equal(back.codes, q.codes)


def test_a_float_format_is_refused(projection):
    with pytest.raises(RecipeError, match=r"cannot be stored as fp16"):
        projection.qtensor(drawn(3, 4), QuantSpec("fp16"))
