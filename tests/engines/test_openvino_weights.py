"""Compressed weights mean what the QTensor says, bit by bit."""

import openvino as ov
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tersor.engines.openvino.weights import Codes, held, plain
from tersor.errors import EngineError
from tersor.numerics import QTensor, QuantSpec, quantize_tensor


def _computed(node) -> Tensor:
    """What the operators give, computed by OpenVINO in float32."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return torch.from_numpy(ov.Core().compile_model(ov.Model([node], []), "CPU", options)([])[0].copy())


@settings(max_examples=25)
@given(
    st.sampled_from(["int2", "int3", "int4", "int8", "uint2", "uint4", "uint8", "ternary", "binary"]),
    st.sampled_from(["tensor", "channel", "channel:1", "group:4", "group:8", "group:32"]),
    st.booleans(),
    st.lists(st.integers(1, 12), min_size=2, max_size=3),
    st.booleans(),
    st.integers(0, 10),
)
def test_codes_are_read_as_the_values_that_they_stand_for(name, granularity, symmetric, shape, transposed, seed):
    symmetric = symmetric or name in ("ternary", "binary")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.3
    unsigned = symmetric and name.startswith("u")
    value = quantize_tensor(x.abs() if unsigned else x, QuantSpec(name, granularity, symmetric))
    expected = value.dequantize()
    found = _computed(Codes("w", value, transposed).read())
    torch.testing.assert_close(found, expected.mT if transposed else expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("spec", "kind", "bits"),
    [
        (QuantSpec("int4", "group:4"), "i4", 4),
        (QuantSpec("int4", "group:4", symmetric=False), "u4", 4),
        (QuantSpec("uint4", symmetric=False), "u4", 4),
        (QuantSpec("int8", "channel"), "i8", 8),
        (QuantSpec("int8", "channel", symmetric=False), "u8", 8),
    ],
)
def test_a_code_takes_its_bits(spec, kind, bits):
    constant = Codes("w", quantize_tensor(torch.randn(6, 8) + 1, spec)).constant
    assert constant.get_element_type().get_type_name() == kind
    assert constant.get_byte_size() == 6 * 8 * bits // 8


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16")])
def test_a_float_weight_keeps_its_width(dtype, kind):
    x = torch.randn(5, 3).to(dtype)
    node = plain(x)
    source = node if kind == "f32" else node.input_value(0).get_node()
    assert source.get_element_type().get_type_name() == kind
    assert torch.equal(_computed(node), x.float())


def test_float_formats_are_refused():
    value = quantize_tensor(torch.randn(4, 4), QuantSpec("fp8_e4m3"))
    with pytest.raises(EngineError, match=r"a\.weight is quantized to fp8_e4m3.*choose int4 or int8"):
        Codes("a.weight", value)


def test_sixteen_bit_formats_are_float_weights():
    value = quantize_tensor(torch.randn(4, 4), QuantSpec("bf16"))
    value = QTensor(value.codes, torch.ones(1, 1), torch.zeros(1, 1), value.spec)
    assert torch.equal(_computed(held("w", value, (4, 4), False)), value.dequantize())


def test_another_shape_is_named():
    with pytest.raises(EngineError, match=r"a\.weight has the shape \(2, 2\), the model wants \(4, 2\)"):
        held("a.weight", torch.zeros(2, 2), (4, 2), False)
