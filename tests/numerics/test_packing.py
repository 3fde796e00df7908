"""Packing against a stream of bits held in one Python integer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import NumericsError
from tersor.numerics import pack, packed_bytes, unpack

WIDTHS = (1, 2, 3, 4, 8, 16)


@st.composite
def streams(draw):
    """Codes, their width and whether they are signed; a signed bit is −1 or 1."""
    bits, signed = draw(st.sampled_from(WIDTHS)), draw(st.booleans())
    if bits == 1:
        values = st.sampled_from([-1, 1] if signed else [0, 1])
    else:
        low = -(2 ** (bits - 1)) if signed else 0
        values = st.integers(low, low + 2**bits - 1)
    return draw(st.lists(values, max_size=67)), bits, signed


@given(streams())
@settings(max_examples=200)
def test_pack_writes_the_bits_of_one_long_little_endian_number(stream):
    codes, bits, _ = stream
    number = 0
    for place, code in enumerate(codes):
        unsigned = (code > 0) if bits == 1 else code % 2**bits
        number |= int(unsigned) << (place * bits)
    packed = pack(torch.tensor(codes, dtype=torch.int32), bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_bytes(len(codes), bits) == (len(codes) * bits + 7) // 8
    assert int.from_bytes(bytes(packed.tolist()), "little") == number


@given(streams())
@settings(max_examples=200)
def test_unpack_returns_what_was_packed(stream):
    codes, bits, signed = stream
    back = unpack(pack(torch.tensor(codes, dtype=torch.int32), bits), bits, len(codes), signed)
    assert back.tolist() == codes
    assert back.dtype.itemsize == (2 if bits == 16 else 1)
    assert back.dtype.is_signed == signed


def test_strided_codes_are_packed_in_their_logical_order():
    codes = torch.arange(12, dtype=torch.int8).reshape(3, 4) % 4
    assert torch.equal(pack(codes.t(), 2), pack(codes.t().contiguous(), 2))
    assert torch.equal(unpack(pack(codes.t(), 2), 2, 12, False), codes.t().reshape(-1).to(torch.uint8))


@pytest.mark.parametrize(
    ("codes", "bits"),
    [([4], 2), ([-3], 2), ([-1, 2], 2), ([2], 1), ([-2], 1), ([8, -1], 4), ([256], 8), ([-129], 8)],
)
def test_a_code_that_does_not_fit_is_refused(codes, bits):
    with pytest.raises(NumericsError, match="do not fit"):
        pack(torch.tensor(codes), bits)


def test_other_widths_and_cut_streams_are_refused():
    with pytest.raises(NumericsError, match="cannot be packed"):
        pack(torch.tensor([1]), 5)
    with pytest.raises(NumericsError, match="truncated"):
        unpack(torch.zeros(2, dtype=torch.uint8), 3, 6, True)
