"""Layouts of language models against plain unpackers written from the formats' texts, and what they refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.checkpoints.layouts import LAYOUTS, layout_of
from tersor.errors import CheckpointError
from tersor.numerics import QTensor, QuantSpec

NAME = "model.layers.0.mlp.up_proj.weight"
LAYER = NAME.removesuffix(".weight")


def random_weight(spec: QuantSpec, outputs: int, inputs: int, seed: int = 0) -> QTensor:
    """Codes and zero points over all that the spec allows: their ends are where packing goes wrong."""
    generator = torch.Generator().manual_seed(seed)
    groups = spec.granularity.scale_shape((outputs, inputs))
    codes = torch.randint(spec.low, spec.high + 1, (outputs, inputs), generator=generator).to(torch.int8)
    zeros = torch.zeros(groups)
    if not spec.symmetric:
        zeros = torch.randint(spec.low, spec.high + 1, groups, generator=generator).float()
    scale = (torch.rand(groups, generator=generator) + 0.01).to(getattr(torch, spec.scale_dtype)).float()
    return QTensor(codes, scale, zeros, spec)


@st.composite
def weights(draw, layout):
    bits = draw(st.sampled_from([4] if layout == "awq" else [2, 3, 4, 8]))
    size = draw(st.sampled_from([0, 8, 32, 64]))
    # Whatever fills words: the layouts that need none take any width.
    outputs, inputs = draw(st.integers(1, 3)) * 32, draw(st.integers(1, 3)) * max(size, 32)
    if layout == "compressed-tensors":
        outputs, inputs = draw(st.integers(1, 70)), draw(st.integers(1, 9)) * size or draw(st.integers(1, 70))
    symmetric = layout == "gptq" or draw(st.booleans())
    granularity = f"group:{size}" if size else "channel"
    spec = QuantSpec(f"int{bits}", granularity, symmetric=symmetric, scale_dtype="float16")
    return spec, outputs, inputs, draw(st.integers(0, 2**31))


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
@settings(max_examples=40)
def test_a_weight_comes_back_as_it_went(name, data):
    layout, q = LAYOUTS[name], random_weight(*data.draw(weights(name)))
    layout.check(NAME, q.shape, q.spec)
    tensors = layout.encode(NAME, q, torch.float16)
    config = layout.config({NAME: q.spec}, ["lm_head"])
    assert layout_of(config) is layout
    assert layout.stored(["norm.weight", "lm_head.bias", *tensors], config) == {NAME}
    back = layout.decode(NAME, tensors, config)
    assert torch.equal(back.codes, q.codes)
    assert back.codes.dtype == torch.int8
    assert torch.equal(back.scale, q.scale)
    assert torch.equal(back.zero_point, q.zero_point)
    if name != "awq" or q.spec.symmetric == back.spec.symmetric:
        assert back.spec == q.spec


def stream(words: list[int]) -> int:
    """Words as one long little-endian number."""
    return sum((w % 2**32) << (32 * k) for k, w in enumerate(words))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["gptq", "gptq_v2"])
def test_gptq_holds_the_bits_that_its_text_says(name, bits):
    spec = QuantSpec(f"int{bits}", "group:32", symmetric=name == "gptq", scale_dtype="float16")
    q = random_weight(spec, 32, 64)
    tensors = LAYOUTS[name].encode(NAME, q, torch.bfloat16)
    qweight, qzeros, scales, order = (tensors[f"{LAYER}.{s}"] for s in ("qweight", "qzeros", "scales", "g_idx"))
    assert (qweight.shape, qzeros.shape, scales.shape) == ((64 * bits // 32, 32), (2, bits), (2, 32))
    assert (qweight.dtype, qzeros.dtype, scales.dtype, order.dtype) == (*[torch.int32] * 2, torch.float16, torch.int32)
    shift = 1 if name == "gptq" else 0
    expected = torch.empty(32, 64)
    for o in range(32):
        column = stream(qweight[:, o].tolist())
        for i in range(64):
            group = order[i]
            code = column >> (bits * i) & (2**bits - 1)
            zero = (stream(qzeros[group].tolist()) >> (bits * o) & (2**bits - 1)) + shift
            expected[o, i] = scales[group, o].float() * (code - zero)
    assert torch.equal(expected, q.dequantize())


def test_awq_holds_the_nibbles_that_its_text_says():
    q = random_weight(QuantSpec("int4", "group:32", symmetric=False, scale_dtype="float16"), 16, 64)
    tensors = LAYOUTS["awq"].encode(NAME, q, torch.bfloat16)
    qweight, qzeros, scales = (tensors[f"{LAYER}.{s}"] for s in ("qweight", "qzeros", "scales"))
    assert (qweight.shape, qzeros.shape, scales.dtype) == ((64, 2), (2, 2), torch.float16)
    expected = torch.empty(16, 64)
    for i in range(64):
        for word in range(2):
            for nibble, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                o = word * 8 + column
                code, zero = (int(t) >> (4 * nibble) & 15 for t in (qweight[i, word], qzeros[i // 32, word]))
                expected[o, i] = scales[i // 32, o].float() * (code - zero)
    assert torch.equal(expected, q.dequantize())


def test_version_1_of_gptq_by_others_is_read_with_zero_points_of_any_value():
    spec = QuantSpec("int4", "group:32", symmetric=False, scale_dtype="float16")
    q = random_weight(spec, 32, 64)
    assert q.zero_point.min() == -8, "a zero point of 0, unsigned, is the case that wraps"
    tensors = LAYOUTS["gptq_v2"].encode(NAME, q, torch.float16)
    zeros = (q.zero_point.long() + 8 - 1) % 16
    words = (zeros.t().reshape(2, 4, 8) << torch.arange(0, 32, 4)).sum(-1)
    tensors[f"{LAYER}.qzeros"] = torch.where(words >= 2**31, words - 2**32, words).int()
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
    assert torch.equal(layout_of(config).decode(NAME, tensors, config).zero_point, q.zero_point)


def test_int_quantized_by_others_is_read():
    q = random_weight(QuantSpec("int8", "channel", scale_dtype="bfloat16"), 5, 7)
    config = LAYOUTS["compressed-tensors"].config({NAME: q.spec}, []) | {"format": "int-quantized"}
    tensors = {NAME: q.codes, f"{NAME}_scale": q.scale.bfloat16()}
    assert LAYOUTS["compressed-tensors"].stored(tensors, config) == {NAME}
    back = LAYOUTS["compressed-tensors"].decode(NAME, tensors, config)
    assert back.spec == q.spec
    assert torch.equal(back.dequantize(), q.dequantize())
    config["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8}
    with pytest.raises(CheckpointError, match="quantizes activations"):
        LAYOUTS["compressed-tensors"].stored(tensors, config)


@pytest.mark.parametrize(
    ("layout", "shape", "spec", "message"),
    [
        ("gptq", (64, 172), QuantSpec("int4", "channel"), "172 inputs, which do not fill whole 32-bit words"),
        ("gptq_v2", (12, 64), QuantSpec("int2", "channel"), "12 outputs, which do not fill whole 32-bit words"),
        ("gptq", (64, 64), QuantSpec("int4", "channel", symmetric=False), "write gptq_v2 or compressed-tensors"),
        ("awq", (64, 64), QuantSpec("int3", "channel"), "awq stores int4, not int3"),
        ("awq", (12, 64), QuantSpec("int4", "channel"), "12 outputs"),
        ("compressed-tensors", (64, 172), QuantSpec("int4", "group:32"), "172 inputs, not a multiple of the group"),
        ("compressed-tensors", (64, 64), QuantSpec("int4", "tensor"), "scales per tensor"),
        ("compressed-tensors", (64, 64), QuantSpec("int16", "channel"), "int16"),
        ("compressed-tensors", (8, 64, 64), QuantSpec("int4", "channel"), "matrices only"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused_by_name(layout, shape, spec, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        LAYOUTS[layout].check(NAME, shape, spec)
    assert NAME in str(caught.value)


def test_a_width_of_172_stands_in_compressed_tensors():
    q = random_weight(QuantSpec("int4", "channel"), 64, 172)
    tensors = LAYOUTS["compressed-tensors"].encode(NAME, q, torch.float32)
    assert tensors[f"{LAYER}.weight_packed"].shape == (64, 22)
    assert tensors[f"{LAYER}.weight_shape"].tolist() == [64, 172]


def test_mixed_groups_are_refused_by_name():
    q = random_weight(QuantSpec("int4", "group:32", scale_dtype="float16"), 64, 64)
    tensors = LAYOUTS["gptq"].encode(NAME, q, torch.float16)
    tensors[f"{LAYER}.g_idx"] = tensors[f"{LAYER}.g_idx"].flip(0)
    with pytest.raises(CheckpointError, match=f"{NAME}: its g_idx"):
        LAYOUTS["gptq"].decode(NAME, tensors, LAYOUTS["gptq"].config({NAME: q.spec}, []))


def test_layers_that_differ_stand_in_the_configuration_or_are_refused():
    def spec(bits, granularity):
        return QuantSpec(f"int{bits}", granularity, scale_dtype="float16")

    specs = {f"model.layers.{k}.up.weight": spec(4, "group:32") for k in range(11)}
    specs |= {"model.layers.1.up.weight": spec(8, "channel"), "model.layers.2.down.weight": spec(4, "channel")}
    for name in ("compressed-tensors", "gptq", "gptq_v2"):
        config = LAYOUTS[name].config(specs, ["model.layers.3.down", "lm_head"])
        for weight, wanted in specs.items():
            q = random_weight(wanted, 32, 64)
            back = LAYOUTS[name].decode(weight, LAYOUTS[name].encode(weight, q, torch.float16), config)
            assert back.spec == wanted, (name, weight)
            assert torch.equal(back.codes, q.codes)
    assert "-:^model\\.layers\\.3\\.down$" in LAYOUTS["gptq"].config(specs, ["model.layers.3.down"])["dynamic"]
    with pytest.raises(CheckpointError, match="one group size for all"):
        LAYOUTS["awq"].config(specs, [])


def test_an_unknown_method_is_refused():
    with pytest.raises(CheckpointError, match=r"'bitnet'.*compressed-tensors"):
        layout_of({"quant_method": "bitnet"})


def test_scales_are_stored_in_the_dtype_that_the_layout_names():
    assert [LAYOUTS[name].scale_dtype(torch.bfloat16) for name in LAYOUTS] == ["bfloat16", *["float16"] * 3]


def stored(name):
    """A weight of two groups a row as the layout stores it; the configuration; the name of its scales."""
    q = random_weight(QuantSpec("int4", "group:32", scale_dtype="float16"), 32, 64)
    tensors, config = LAYOUTS[name].encode(NAME, q, torch.float16), LAYOUTS[name].config({NAME: q.spec}, [])
    return q, tensors, config, next(k for k in tensors if k.endswith(("scales", "weight_scale")))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_scale_of_zero_stands_for_zeros(name):
    """FP16 has no number for a group of nearly nothing, and some writers store 0 for one of nothing."""
    q, tensors, config, scales = stored(name)
    scale = tensors[scales].clone()
    scale[0, 0] = 0
    back = LAYOUTS[name].decode(NAME, {**tensors, scales: scale}, config)
    expected = q.dequantize()
    expected[0, :32] = 0
    assert torch.equal(back.dequantize(), expected)
    assert (back.scale > 0).all()
    assert back.codes.dtype == torch.int8


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_a_damaged_scale_names_the_weight(name, wrong):
    _, tensors, config, scales = stored(name)
    scale = tensors[scales].clone()
    scale[0, 0] = wrong
    with pytest.raises(CheckpointError, match=rf"{NAME}: 1 of 64 scales are not positive and finite.*damaged"):
        LAYOUTS[name].decode(NAME, {**tensors, scales: scale}, config)
