"""Values that state invariants refuse to be made without them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics.strategies import CODED, FLOATS, INTEGERS, cases

from tersor.errors import NumericsError, RecipeError
from tersor.numerics import FORMATS, Granularity, QTensor, QuantSpec, expand, quantize_tensor
from tersor.numerics.ranges import fits

EVERY = [*CODED, "binary", *FLOATS]
NARROW = [n for n in EVERY if FORMATS[n].kind != "float" and FORMATS[n].bits not in (8, 16)]


@given(cases(EVERY))
def test_what_was_quantized_can_be_made_again(case):
    q = quantize_tensor(case[1], case[0])
    again = QTensor(q.codes, q.scale, q.zero_point, q.spec)
    assert torch.equal(again.dequantize(), q.dequantize())


@given(cases(NARROW), st.data())
def test_one_code_beyond_its_format_is_refused(case, data):
    spec, x = case
    q = quantize_tensor(x, spec)
    codes = q.codes.clone()
    place = data.draw(st.integers(0, codes.numel() - 1))
    info = torch.iinfo(codes.dtype)
    below, above = st.integers(info.min, spec.format.low - 1), st.integers(spec.format.high + 1, info.max)
    wrong = data.draw(st.one_of([one for one, there in ((below, info.min < spec.format.low), (above, True)) if there]))
    codes.view(-1)[place] = wrong
    with pytest.raises(NumericsError, match=rf"codes from .*{wrong}.* outside {spec.format}"):
        replace(q, codes=codes)


@given(cases(EVERY), st.sampled_from([0.0, -1.0, float("nan"), float("inf"), -0.0]), st.data())
def test_one_scale_that_is_not_positive_and_finite_is_refused(case, wrong, data):
    q = quantize_tensor(case[1], case[0])
    scale = q.scale.clone()
    scale.view(-1)[data.draw(st.integers(0, scale.numel() - 1))] = wrong
    with pytest.raises(NumericsError, match=rf"1 of {scale.numel()} scales are not positive and finite"):
        replace(q, scale=scale)


@given(cases(INTEGERS), st.sampled_from(["below", "above", "fraction", "nan"]), st.data())
def test_one_zero_point_that_is_no_code_is_refused(case, kind, data):
    q = quantize_tensor(case[1], case[0])
    format = q.spec.format
    wrong = {"below": format.low - 1.0, "above": format.high + 1.0, "fraction": 0.5, "nan": float("nan")}[kind]
    zero_point = q.zero_point.clone()
    zero_point.view(-1)[data.draw(st.integers(0, zero_point.numel() - 1))] = wrong
    with pytest.raises(NumericsError, match=r"zero points from"):
        replace(q, zero_point=zero_point)


def test_a_symmetric_tensor_has_no_zero_point():
    q = quantize_tensor(torch.randn(3, 4), QuantSpec("int8", "channel"))
    with pytest.raises(NumericsError, match=r"from 0 to 1 in a symmetric spec .*symmetric=False"):
        replace(q, zero_point=torch.tensor([[0.0], [1.0], [0.0]]))


@given(cases(EVERY), st.data())
def test_a_scale_of_another_shape_is_refused(case, data):
    q = quantize_tensor(case[1], case[0])
    shape = list(q.scale.shape)
    shape[data.draw(st.integers(0, len(shape) - 1))] += 1
    with pytest.raises(NumericsError, match=r"a scale of shape .* does not fit codes of shape"):
        replace(q, scale=torch.ones(shape), zero_point=torch.zeros(shape))
    with pytest.raises(NumericsError, match="a zero point of shape"):
        replace(q, zero_point=torch.zeros(shape))


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "fp16", "bf16", "fp32"])
@pytest.mark.parametrize("wrong", ["nan", "inf", "-inf"])
def test_codes_of_floats_are_finite(name, wrong):
    spec, dtype = QuantSpec(name), FORMATS[name].dtype
    if name == "fp8_e4m3" and wrong != "nan":
        pytest.skip("it has no infinity")
    codes = torch.tensor([0.0, FORMATS[name].high, FORMATS[name].low, float(wrong)]).to(dtype)
    one, zero = torch.ones(()), torch.zeros(())
    assert QTensor(codes[:3], one, zero, spec).dequantize()[1] == FORMATS[name].high
    with pytest.raises(NumericsError, match="NaN or infinity"):
        QTensor(codes, one, zero, spec)


def test_binary_has_no_zero():
    with pytest.raises(NumericsError, match="0 is not a binary code"):
        QTensor(torch.tensor([1, 0, -1], dtype=torch.int8), torch.ones(()), torch.zeros(()), QuantSpec("binary"))


def test_a_format_with_other_limits_than_its_dtype_is_checked():
    seven = replace(FORMATS["int8"], low=-64, high=63)
    codes = torch.tensor([-64, 63, 64], dtype=torch.int8)
    QTensor(codes[:2], torch.ones(()), torch.zeros(()), QuantSpec(seven))
    with pytest.raises(NumericsError, match="from -64 to 64 are outside int8, which has -64 to 63"):
        QTensor(codes, torch.ones(()), torch.zeros(()), QuantSpec(seven))


def test_dtypes_are_those_of_the_format():
    one, zero, spec = torch.ones(()), torch.zeros(()), QuantSpec("int8")
    with pytest.raises(NumericsError, match=r"codes are torch\.int32, those of int8 are torch\.int8"):
        QTensor(torch.zeros(2, dtype=torch.int32), one, zero, spec)
    with pytest.raises(NumericsError, match=r"a scale is torch\.float64"):
        QTensor(torch.zeros(2, dtype=torch.int8), one.double(), zero, spec)


def test_the_meta_device_has_no_values_to_check():
    q = quantize_tensor(torch.randn(3, 4), QuantSpec("int4", "channel"))
    parts = (t.to("meta") for t in (q.codes, q.scale, q.zero_point))
    assert QTensor(*parts, q.spec).shape == (3, 4)


def test_trusted_parts_are_taken_as_they_are():
    made = QTensor.trusted(torch.tensor([99], dtype=torch.int8), -torch.ones(()), torch.zeros(()), QuantSpec("int4"))
    assert made.dequantize().tolist() == [-99.0]


@pytest.mark.parametrize("spec", ["channel", "channel:1", "group:2", "filters:2", "token"])
def test_one_range_given_for_all_becomes_a_scale_each(spec):
    q = quantize_tensor(torch.randn(4, 6), QuantSpec("int8", spec), low=-1.0, high=1.0)
    assert tuple(q.scale.shape) == q.spec.granularity.scale_shape((4, 6))
    assert q.scale.unique().numel() == 1


@given(st.lists(st.integers(1, 4), max_size=3), st.lists(st.integers(1, 6), max_size=3), st.integers(0, 3))
def test_fits_is_what_expand_takes(scale, shape, block):
    try:
        expand(torch.ones(scale), tuple(shape), block)
        taken = True
    except NumericsError:
        taken = False
    assert fits(tuple(scale), tuple(shape), block) == taken


@pytest.mark.parametrize("kind", ["rows", "", "Tensor"])
def test_a_granularity_of_no_known_kind_is_refused(kind):
    with pytest.raises(RecipeError, match=rf"granularity '{kind}' is unknown: tensor, channel, group, filters, token"):
        Granularity(kind)
