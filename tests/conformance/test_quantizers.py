"""Every entry of QUANTIZERS trains what is deployed, in every format and role that it declares."""

import copy
from dataclasses import FrozenInstanceError, is_dataclass

import pytest
import torch
from torch import Tensor

from tersor.errors import NumericsError, RecipeError
from tersor.numerics import FORMATS, QuantSpec, fake_quantize
from tersor.numerics.qtensor import quantize_tensor
from tersor.training.quantizers import QUANTIZERS, Start, quantizer
from tersor.training.quantizers.binary import Binary
from tersor.training.quantizers.lsq import LearnedStep

GRANULARITIES = ("tensor", "channel", "channel:1", "group:4")
FLOAT = ("projected",)  # the loss sees the float weights: quantized in eval mode alone
LEARNED = ("lsq", "lsq+", "pact", "ttq", "sign")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sites() -> list[tuple[str, str, QuantSpec]]:
    """Every entry with every role and spec that it takes."""
    found = []
    for name, entry in QUANTIZERS.items():
        for format in FORMATS.values():
            if not {format.name, format.kind} & entry.kinds or format.name == "fp32":
                continue
            for role in sorted(entry.roles):
                for symmetric in (True, False) if format.kind == "int" else (True,):
                    for granularity in GRANULARITIES if role == "weight" else ("tensor",):
                        spec = QuantSpec(format, granularity, symmetric)
                        if taken(name, role, spec):
                            found.append((name, role, spec))
    return found


def taken(name: str, role: str, spec: QuantSpec) -> bool:
    """Whether the technique has a meaning there; its refusals are tested apart."""
    if name == "projected":
        return spec.format.name == "ternary" and not spec.block
    if name == "lsq+":
        return not spec.symmetric
    if name == "pact":
        return not spec.format.signed
    if spec.symmetric and spec.format.kind == "int" and not spec.format.signed:
        return role == "activation"
    return not (spec.block and name in ("twn", "ttq", "sign", "irnet"))


def value(name: str, role: str, spec: QuantSpec) -> Tensor:
    """A weight, or an activation; one that is not negative where no code is."""
    x = drawn(6, 8, 3) if role == "weight" else drawn(5, 8, 3)
    one_sided = name == "pact" or (spec.symmetric and not spec.format.signed)
    return x.abs() if one_sided else x


def started(name: str, role: str, spec: QuantSpec, x: Tensor | None = None):
    x = value(name, role, spec) if x is None else x
    # A range that clips some values.
    q = quantize_tensor(0.7 * x, spec.with_(rounding="nearest"))
    return quantizer(name, Start("layer", spec, q.scale, q.zero_point, x if role == "weight" else None)), x


def deployed(module, x: Tensor) -> Tensor:
    """What the deployed node makes of the value."""
    if module.is_weight:
        q = module.qtensor(x)
        return torch.ops.tersor.dequantize(q.codes, q.scale, q.zero_point, q.spec.block)
    scale, zero_point = (t.detach() for t in module.grid(x))
    return fake_quantize(x, scale, zero_point, module.spec)


def few(spec: QuantSpec) -> bool:
    """Those that every run tries; the others are slow."""
    return spec.format.name in ("int4", "uint8", "ternary", "binary", "fp8_e4m3") and not spec.block


SITES = sites()
EACH = pytest.mark.parametrize(
    ("name", "role", "spec"),
    [pytest.param(*s, id=" ".join(map(str, s)), marks=() if few(s[2]) else pytest.mark.slow) for s in SITES],
)
ONE = [next(s for s in SITES if s[0] == name) for name in QUANTIZERS]
ENTRY = pytest.mark.parametrize(("name", "role", "spec"), ONE, ids=[n for n, *_ in ONE])


@EACH
def test_the_forward_pass_is_the_deployed_node_bit_for_bit(name, role, spec):
    module, x = started(name, role, spec)
    for training in (True, False) if name not in FLOAT else (False,):
        y = module.train(training)(x)
        assert torch.equal(y, deployed(module, x))
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert len(y.unique()) > 1


@EACH
def test_gradients_reach_the_value_and_every_parameter(name, role, spec):
    module, x = started(name, role, spec)
    x = x.clone().requires_grad_()
    (module(x) * drawn(*x.shape, seed=1)).sum().backward()
    for tensor in (x, *module.parameters()):
        assert 0 < tensor.grad.abs().sum() < torch.inf


@ENTRY
def test_it_is_a_frozen_dataclass(name, role, spec):
    entry = QUANTIZERS[name]()
    assert is_dataclass(entry)
    with pytest.raises((FrozenInstanceError, AttributeError)):
        entry.other = 1


@ENTRY
def test_its_state_round_trips(name, role, spec):
    module, x = started(name, role, spec)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3)
    other, _ = started(name, role, spec, 3 * x)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))


@ENTRY
def test_it_is_deterministic(name, role, spec):
    module, x = started(name, role, spec)
    assert torch.equal(module(x), module(x))


@ENTRY
def test_half_precision_keeps_its_dtype_and_the_deployed_numbers(name, role, spec):
    module, x = started(name, role, spec)
    module.train(name not in FLOAT)
    x = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, deployed(module, x.detach()).bfloat16())
    if name in FLOAT:
        y = module.train()(x)
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16


@ENTRY
def test_a_nan_is_not_hidden(name, role, spec):
    module, x = started(name, role, spec)
    x[0, 0, 0] = torch.nan
    assert module(x).isnan().any()
    if module.is_weight:
        with pytest.raises(NumericsError, match=r"layer: .*NaN"):
            module.qtensor(x)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", [n for n, e in QUANTIZERS.items() if "weight" in e.roles])
def test_weights_of_zero_have_codes_and_finite_gradients(name, granularity):
    _, role, spec = next(s for s in SITES if s[0] == name and s[1] == "weight" and s[2].format.signed)
    spec = spec.with_(granularity=QuantSpec(spec.format, granularity).granularity)
    for zero in (slice(0, 1), slice(None)):
        x = drawn(6, 8, 3)
        x[zero] = 0
        module, x = started(name, role, spec, x)
        q = module.qtensor(x)
        assert (q.dequantize()[zero].abs() < 1e-6).all() or name in ("sign", "irnet")
        latent = x.clone().requires_grad_()
        module(latent).square().sum().backward()
        assert latent.grad.isfinite().all()


@pytest.mark.parametrize("steps", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LEARNED)
def test_scales_stay_positive_after_hostile_steps(name, steps):
    _, role, spec = next(s for s in SITES if s[0] == name)
    module, x = started(name, role, spec)
    random = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(module.parameters(), lr=30.0, momentum=0.9)
    for k in range(steps):
        optimizer.zero_grad()
        (module(x) * torch.randn(x.shape, generator=random) * 10.0 ** (k % 5)).sum().backward()
        optimizer.step()
        scale, zero_point = module.grid(x)
        assert ((scale > 0) & scale.isfinite()).all()
        assert ((zero_point >= spec.low) & (zero_point <= spec.high)).all()
    assert module(x).isfinite().all()


# --- refusals ---


@pytest.mark.parametrize(
    ("name", "spec", "zero", "weight", "match"),
    [
        ("pact", QuantSpec("uint8", symmetric=False), 3.0, False, "pact clips to .* 3 steps below zero; take lsq"),
        ("pact", QuantSpec("int8"), 0.0, False, "pact clips"),
        ("pact", QuantSpec("uint8"), 0.0, True, "the quantizer pact is for the activation, not for the weight"),
        ("lsq+", QuantSpec("int8"), 0.0, False, r"lsq\+ learns the zero point, but int8 .* has none; take lsq"),
        ("lsq", QuantSpec("fp8_e4m3"), 0.0, False, "the quantizer lsq trains the formats int, ternary, not fp8_e4m3"),
        ("twn", QuantSpec("int8"), 0.0, True, "the quantizer twn trains the formats ternary, not int8"),
        ("twn", QuantSpec("ternary", "group:4"), 0.0, True, "a threshold is per channel or tensor, not per group:4"),
        ("sign", QuantSpec("binary", "group:4"), 0.0, True, "binary scales are per channel or tensor, not group:4"),
        ({"sign": {"scale": "mean"}}, QuantSpec("binary"), 0.0, False, "the scale of binary activations is"),
    ],
)
def test_what_it_does_not_train_is_refused_by_name(name, spec, zero, weight, match):
    x = drawn(4, 8)
    start = Start("layer", spec, torch.tensor(1.0), torch.tensor(zero), x if weight else None)
    with pytest.raises(RecipeError, match=f"layer: {match}"):
        quantizer(name, start)


def test_auto_takes_the_sign_for_binary_values_and_lsq_for_the_others():
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    assert isinstance(quantizer("auto", Start("x", QuantSpec("binary"), one, zero)), Binary)
    assert isinstance(quantizer("auto", Start("x", QuantSpec("ternary"), one, zero)), LearnedStep)
