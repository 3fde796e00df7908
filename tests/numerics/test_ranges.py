"""Ranges, scales and their shapes, against brute force and worked numbers."""

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics.strategies import CODED, FLOATS, cases, specs

from tersor.errors import NumericsError
from tersor.numerics import QTensor, QuantSpec, expand, qparams, quantize, quantize_tensor, reduce_range


def brute_ranges(x: torch.Tensor, spec: QuantSpec) -> list[tuple[float, float]]:
    """Every element put into the bag of its scale by the words of the granularity; bags in order."""
    kind, axis, size = spec.granularity.kind, spec.granularity.axis, spec.granularity.size
    bags: dict[tuple, list[float]] = {}
    for index in itertools.product(*map(range, x.shape)):
        key = {
            "tensor": (),
            "channel": (index[axis],),
            "group": (index[0], index[1] // max(size, 1)),
            "filters": (index[0] // max(size, 1),),
            "token": index[:-1],
        }[kind]
        bags.setdefault(key, []).append(x[index].item())
    return [(min(bag), max(bag)) for _, bag in sorted(bags.items())]


@given(cases())
def test_ranges_are_those_of_every_bag(case):
    spec, x = case
    low, high = reduce_range(x, spec)
    assert list(zip(low.flatten().tolist(), high.flatten().tolist(), strict=True)) == brute_ranges(x, spec)


@given(st.integers(1, 11), st.integers(1, 12))
def test_expand_gives_each_element_the_scale_of_its_block(count, block):
    t = torch.arange(float(-(-count // block))).reshape(1, -1)
    wanted = [float(i // block) for i in range(count)]
    assert expand(t, (3, count), block).broadcast_to(3, count).tolist() == [wanted] * 3


def test_a_scale_that_does_not_fit_is_refused_with_both_shapes():
    for shape, block in (((1, 2), 0), ((1, 2), 2), ((5,), 0), ((1, 4), 2)):
        with pytest.raises(NumericsError, match=r"\(3, 5\)"):
            expand(torch.ones(shape), (3, 5), block)


@given(specs([*CODED, *FLOATS]), st.floats(-1e4, 1e4), st.floats(0, 1e4))
def test_zero_is_exact(spec, low, width):
    signed = spec.format.signed or not spec.symmetric
    low = low if signed else abs(low)
    scale, zero_point = qparams(low, low + width, spec.with_(granularity="tensor"))
    code = quantize(torch.zeros(1), scale, zero_point, spec.with_(granularity="tensor"))
    assert (code.float() - zero_point).item() == 0.0


def test_worked_example_of_an_asymmetric_range():
    spec = QuantSpec("int8", symmetric=False)
    scale, zero_point = qparams(-700.0, 1000.0, spec)
    assert scale.item() == torch.tensor(1700 / 255).item()
    assert round(1 / scale.item(), 2) == 0.15
    assert zero_point.item() == -23
    codes = quantize(torch.tensor([-700.0, 1000.0, 0.0]), scale, zero_point, spec)
    assert codes.tolist() == [-128, 127, -23]
    assert QTensor(codes, scale, zero_point, spec).dequantize()[2].item() == 0.0


def test_a_one_sided_range_is_widened_to_zero():
    spec = QuantSpec("int8", symmetric=False)
    for (low, high), zero in (((2.5, 3.5), -128), ((-3.5, -2.5), 127)):
        scale, zero_point = qparams(low, high, spec)
        assert scale.item() == torch.tensor(3.5 / 255).item()
        assert zero_point.item() == zero
        # Without it the zero point would lie outside the codes.
        assert not -128 <= -128 - round(low / (1 / 255)) <= 127


def test_symmetric_scales():
    assert qparams(-2.0, 1.0, QuantSpec("int8"))[0].item() == torch.tensor(2 / 127).item()
    assert qparams(-2.0, 1.0, QuantSpec("int4"))[0].item() == torch.tensor(2 / 7).item()
    # A ReLU's output on 0 … 255.
    spec = QuantSpec("uint8")
    scale, zero_point = qparams(0.0, 6.0, spec)
    assert scale.item() == torch.tensor(6 / 255).item()
    assert quantize(torch.tensor([0.0, 6.0, 9.0]), scale, zero_point, spec).tolist() == [0, 255, 255]


@pytest.mark.parametrize("name", [*CODED, "binary", "fp8_e4m3"])
@pytest.mark.parametrize("scale_dtype", ["float32", "float16", "bfloat16"])
def test_a_dead_channel_has_a_scale_and_comes_back_as_zero(name, scale_dtype):
    x = torch.tensor([[0.0, 0.0, 0.0], [0.5, 2.0, 1.0], [0.1, 0.0, 0.25]])
    q = quantize_tensor(x, QuantSpec(name, "channel", scale_dtype=scale_dtype))
    alone = quantize_tensor(torch.zeros(2, 2), QuantSpec(name, scale_dtype=scale_dtype))
    if name == "binary":
        # It has no zero: the dead channel comes back as the smallest there is.
        assert (
            q.scale[0].item()
            == alone.scale.item()
            == torch.finfo(getattr(torch, scale_dtype)).smallest_normal
        )
    else:
        assert q.dequantize()[0].tolist() == [0.0, 0.0, 0.0]
        assert q.scale[0] == q.scale.max() == q.scale[1]
        assert alone.scale.item() == 1.0


def test_a_scale_stored_in_16_bits_neither_vanishes_nor_loses_the_range():
    tiny = quantize_tensor(torch.tensor([1e-6, -3e-6]), QuantSpec("int8", scale_dtype="float16"))
    assert tiny.scale.item() == torch.finfo(torch.float16).smallest_normal
    for largest in torch.linspace(1, 2, 50).tolist():
        scale, _ = qparams(-largest, largest, QuantSpec("int16", scale_dtype="bfloat16"))
        exact = Fraction(torch.tensor(largest, dtype=torch.float64).item()) / 32767
        # The least of the bfloat16 numbers that are not below it.
        assert Fraction(scale.item()) >= exact > Fraction(scale.item()) * (1 - Fraction(1, 128))
    with pytest.raises(NumericsError, match="float32"):
        qparams(-1e8, 1e8, QuantSpec("int8", scale_dtype="float16"))


@pytest.mark.parametrize(
    ("low", "high", "match"),
    [
        (float("nan"), 1.0, "nan"),
        (0.0, float("inf"), "inf"),
        (float("-inf"), 0.0, "-inf"),
        (2.0, 1.0, "swapped"),
    ],
)
def test_ranges_that_are_none(low, high, match):
    with pytest.raises(NumericsError, match=match):
        qparams(low, high, QuantSpec("int8", symmetric=False))


def test_the_scale_of_a_float_format():
    assert qparams(-896.0, 1.0, QuantSpec("fp8_e4m3"))[0].item() == 2.0
    # Wide floats are plain casts, unless the range would not fit.
    assert qparams(-3.0, 1.0, QuantSpec("fp16"))[0].item() == 1.0
    assert qparams(-3.0e38, 1.0, QuantSpec("bf16"))[0].item() == 1.0
    assert qparams(0.0, 2 * 65504.0, QuantSpec("fp16"))[0].item() == 2.0
