"""The integer products against exact arithmetic on the codes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.network.quantized import integer
from tersor.network.quantized.integer import Packed, row_codes, shifted_codes, wide_codes


@pytest.fixture(params=["onednn", "int_mm", "float"])
def backend(request, monkeypatch):
    """Every way to multiply that this machine has."""
    if request.param == "onednn" and integer.backend() != "onednn":
        pytest.skip("PyTorch has no oneDNN here")
    monkeypatch.setattr(integer, "backend", lambda: request.param)
    return request.param


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 384, 1536), (7, 33, 5), (128, 64, 64), (2, 4096, 3)])
def test_products_are_those_of_the_codes(backend, shape):
    rows, width, out = shape
    generator = torch.Generator().manual_seed(rows)
    left = torch.randint(-127, 128, (rows, width), generator=generator, dtype=torch.int8)
    right = torch.randint(-127, 128, (out, width), generator=generator, dtype=torch.int8)
    scale = torch.rand(out, generator=generator) + 0.5
    exact = (left.double() @ right.double().t()) * scale.double()
    # int32 sums are exact; float32 then has 24 bits for them.
    tolerance = 1e-6 if backend != "float" else 1e-5
    slack = tolerance * 127**2 * width**0.5
    assert torch.allclose(Packed(right, scale)(left).double(), exact, rtol=tolerance, atol=slack)


@pytest.mark.parametrize(("extreme", "dtype"), [(-127, torch.int8), (255, torch.uint8)])
def test_extreme_codes_do_not_saturate(backend, extreme, dtype):
    left, right = torch.full((2, 512), extreme, dtype=dtype), torch.full((3, 512), -127, dtype=torch.int8)
    assert Packed(right, torch.ones(3))(left).unique().tolist() == [-127 * extreme * 512]


finite = st.floats(-1e4, 1e4, width=32)


@given(st.lists(finite, min_size=1, max_size=40))
def test_row_codes_are_the_nearest(values):
    x = torch.tensor([values])
    codes, scale = row_codes(x)
    assert codes.abs().max() <= 127
    assert ((codes * scale - x).abs() <= scale * 0.50001).all()


@given(st.lists(finite, min_size=1, max_size=40))
def test_shifted_codes_are_the_nearest_and_hold_zero(values):
    x = torch.tensor([[*values, 0.0]])
    codes, scale, shift = shifted_codes(x)
    back = (codes.double() + shift.double()) * scale.double()
    assert back[0, -1] == 0
    assert ((back - x).abs() <= scale * 0.5001 + x.abs() * 1e-5).all(), "a code that wraps round is far away"


@given(st.lists(finite, min_size=1, max_size=40))
def test_wide_codes_are_at_most_a_step_and_a_half_away(values):
    x = torch.tensor([values])
    high, low, scale = wide_codes(x)
    assert ((256.0 * high + low - x / scale).abs() <= 1.51).all()


def test_each_row_has_a_scale_of_its_own_unless_shared():
    x = torch.tensor([[1.0, -2.0], [100.0, 50.0]])
    assert row_codes(x)[1].flatten().tolist() == pytest.approx([2 / 127, 100 / 127])
    assert row_codes(x, shared=True)[1].flatten().tolist() == pytest.approx([100 / 127])


def test_nan_stays_in_its_row():
    x = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    codes, scale = row_codes(x)
    result = Packed(torch.ones(1, 2, dtype=torch.int8), torch.ones(1))(codes) * scale
    assert result[0].isnan()
    assert result[1].isfinite()
