"""The table of formats against the definitions of its entries."""

import pytest
import torch
from numerics.strategies import CODED, FLOATS, INTEGERS

from tersor.numerics import FORMATS


def test_every_format_of_the_design_is_there():
    assert set(FORMATS) == {
        *("int2", "int3", "int4", "int8", "int16", "uint1", "uint2", "uint3", "uint4", "uint8", "binary", "ternary"),
        *("fp8_e4m3", "fp8_e5m2", "fp16", "bf16", "fp32"),
    }  # fmt: skip
    assert all(name == one.name for name, one in FORMATS.items())


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_format_uses_every_code_of_its_bits(name):
    one = FORMATS[name]
    assert one.high - one.low == 2**one.bits - 1
    assert one.signed == (not name.startswith("u"))
    assert one.low == (-(2 ** (one.bits - 1)) if one.signed else 0)


@pytest.mark.parametrize("name", [*CODED, "binary"])
def test_the_dtype_holds_every_code(name):
    one = FORMATS[name]
    held = torch.tensor([one.low, one.high]).to(one.dtype)
    assert held.tolist() == [one.low, one.high]
    assert 2**one.bits >= len({one.low, one.high})


@pytest.mark.parametrize(
    ("name", "exponent", "mantissa", "limit"),
    [
        ("fp32", 8, 23, (2 - 2**-23) * 2.0**127),
        ("fp16", 5, 10, 65504.0),
        ("bf16", 8, 7, (2 - 2**-7) * 2.0**127),
        ("fp8_e4m3", 4, 3, 448.0),  # no infinities: only the last pattern of the top exponent is lost, to NaN
        ("fp8_e5m2", 5, 2, 57344.0),
    ],
)
def test_floats_have_the_bits_and_limits_of_their_standards(name, exponent, mantissa, limit):
    one = FORMATS[name]
    assert (one.exponent, one.mantissa, one.bits) == (exponent, mantissa, 1 + exponent + mantissa)
    assert one.high == limit == -one.low
    assert one.dtype.itemsize * 8 == one.bits


@pytest.mark.parametrize("name", FLOATS)
def test_the_smallest_normal_number(name):
    assert 2.0 ** FORMATS[name].smallest_exponent == torch.finfo(FORMATS[name].dtype).smallest_normal
