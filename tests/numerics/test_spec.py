"""Granularities and specifications: their texts, their shapes, and what does not exist."""

import pytest
from hypothesis import given
from numerics.strategies import FLOATS, INTEGERS, granularities, specs

from tersor.errors import RecipeError
from tersor.numerics import FORMATS, Granularity, QuantSpec


@given(granularities)
def test_text_round_trip(text):
    assert str(Granularity.parse(text)) == text


def test_constructors_and_texts_agree():
    pairs = {
        "tensor": Granularity.tensor(),
        "channel": Granularity.channel(),
        "channel:1": Granularity.channel(1),
        "group:32": Granularity.group(32),
        "filters:16": Granularity.filters(16),
        "token": Granularity.token(),
    }
    assert {text: Granularity.parse(text) for text in pairs} == pairs


UNKNOWN = ["", "row", "group", "group:0", "group:-1", "filters", "tensor:1", "token:2"]


@pytest.mark.parametrize("text", UNKNOWN)
def test_a_granularity_that_does_not_exist_says_which_do(text):
    with pytest.raises(RecipeError, match=r"group"):
        Granularity.parse(text)


@pytest.mark.parametrize(
    ("granularity", "shape", "scales"),
    [
        # A textbook's: Conv1 of 32 filters, Conv2 of 64, also as 4 groups of 16, a first layer of 7×7×3×64.
        ("tensor", (32, 1, 3, 3), 1),
        ("channel", (32, 1, 3, 3), 32),
        ("channel", (64, 32, 3, 3), 64),
        ("filters:16", (64, 8, 3, 3), 4),
        ("channel", (64, 3, 7, 7), 64),
        ("group:32", (10, 100), 10 * 4),
        ("filters:16", (40, 8), 3),
        ("token", (2, 5, 8), 10),
        ("channel:1", (2, 5, 8), 5),
        ("channel:-1", (2, 5, 8), 8),
    ],
)
def test_how_many_scales(granularity, shape, scales):
    counts = Granularity.parse(granularity).scale_shape(shape)
    assert len(counts) == len(shape)
    product = 1
    for count in counts:
        product *= count
    assert product == scales


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [("channel", ()), ("channel:2", (3, 4)), ("channel:-3", (3, 4)), ("group:2", (3,)), ("token", ())],
)
def test_a_missing_dimension_is_named(granularity, shape):
    with pytest.raises(RecipeError, match="dimensions"):
        Granularity.parse(granularity).scale_shape(shape)


@given(specs([*INTEGERS, *FLOATS, "binary", "ternary"]))
def test_dict_round_trip(spec):
    assert QuantSpec(**spec.as_dict()) == spec
    assert all(isinstance(value, str | bool) for value in spec.as_dict().values())


@pytest.mark.parametrize("name", INTEGERS)
def test_symmetric_signed_codes_are_symmetric_and_others_use_all(name):
    one = FORMATS[name]
    symmetric, asymmetric = QuantSpec(name), QuantSpec(name, symmetric=False)
    assert (asymmetric.low, asymmetric.high) == (one.low, one.high)
    assert (symmetric.low, symmetric.high) == ((-one.high if one.signed else 0), one.high)


def test_texts():
    assert str(QuantSpec("int8", "channel")) == "int8 per channel symmetric"
    assert str(QuantSpec("uint8", symmetric=False)) == "uint8 per tensor asymmetric"
    assert str(QuantSpec("fp8_e4m3")) == "fp8_e4m3 per tensor"
    text = str(QuantSpec("int4", "group:32", rounding="stochastic", scale_dtype="float16"))
    assert text == "int4 per group:32 symmetric stochastic float16 scales"


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"format": "int9"}, "did you mean int"),
        ({"format": "posit"}, "there are int2, int3"),
        ({"rounding": "up"}, "nearest or stochastic"),
        ({"scale_dtype": "int8"}, "float32, float16"),
        ({"format": "ternary", "symmetric": False}, "ternary has no zero point"),
        ({"format": "fp16", "symmetric": False}, "fp16 has no zero point"),
    ],
)
def test_what_does_not_exist_is_refused_with_a_remedy(changes, hint):
    with pytest.raises(RecipeError, match=hint):
        QuantSpec("int8").with_(**changes)
