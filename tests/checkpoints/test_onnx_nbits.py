"""Weights of few bits in ONNX: MatMulNBits computes what was simulated, and the file is as small as the weights."""

import numpy as np
import onnx
import pytest
import torch
from onnx.numpy_helper import to_array
from quantized import Branches, QLinear, draw, network
from torch import nn
from torch.nn import functional as F

from tersor.checkpoints.onnx.nbits import BLOCKS, _cheapest
from tersor.checkpoints.onnx.qdq import Style, to_onnx
from tersor.engines import ENGINES
from tersor.engines.onnxruntime import OnnxRuntime
from tersor.network.network import op_name
from tersor.numerics.spec import QuantSpec

engine = ENGINES["onnxruntime"]


def narrow(*steps, shape, bits):
    """The network; its weights bear how many bits their codes have, as the planner notes it."""
    net = network(*steps, shape=shape)
    weights = [n for n in net.operators() if op_name(n) == "dequantize"]
    for node, width in zip(weights, bits, strict=True):
        node.meta["bits"] = width
    return net


def branches(layers, shape):
    """The layers side by side: one export for them all."""
    return narrow(Branches(*layers), shape=shape, bits=[layer.spec.format.bits for layer in layers])


class Few(QLinear):
    """A linear layer that remembers its weight's spec."""

    def __init__(self, inputs, outputs, *spec, symmetric=True):
        torch.manual_seed(0)
        chosen = QuantSpec(*spec, symmetric=symmetric)
        super().__init__(inputs, outputs, chosen)
        self.spec = chosen


def kinds(model):
    return [n.op_type for n in model.graph.node]


def attributes(model):
    nodes = [n for n in model.graph.node if n.op_type == "MatMulNBits"]
    return [{a.name: a.i for a in node.attribute} for node in nodes]


SPECS = {
    "int4 in groups": ("int4", "group:32", True, 32),
    "zero points": ("int4", "group:32", False, 32),
    "unsigned": ("uint4", "group:64", False, 64),
    "2 bits": ("int2", "group:16", True, 16),
    "2 bits with zero points": ("uint2", "group:16", False, 16),
    "8 bits": ("int8", "group:32", True, 32),
    "8 bits with zero points": ("uint8", "group:32", False, 32),
    "groups that hold whole blocks": ("int4", "group:48", False, 16),
    "a channel": ("int4", "channel", True, 64),
    "a channel with zero points": ("uint4", "channel", False, 64),
    "the whole weight": ("int4", "tensor", True, 64),
    "one group wider than the layer": ("int4", "group:256", True, 64),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(172,), (3, 172)], ids=["rows", "sequences"])
def test_the_runtime_computes_what_is_simulated(shape):
    layers = [Few(172, 10, form, text, symmetric=symmetric) for form, text, symmetric, _ in SPECS.values()]
    net = branches(layers, shape)
    runner = engine.compile(net, threads=1)
    assert "DequantizeLinear" not in kinds(runner.model)
    for found, layer, (*_, block) in zip(attributes(runner.model), layers, SPECS.values(), strict=True):
        bits = layer.spec.format.bits
        assert found == {"K": 172, "N": 10, "bits": bits, "block_size": block, "accuracy_level": 1}
    for batch in (1, 5):
        x = draw(batch, *shape)
        for case, ours, theirs in zip(SPECS, runner(x), net(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, msg=case)
    executed = {r.nodes[0]: r.precision for r in runner.executed() if r.nodes}
    wanted = ["int8" if layer.spec.format.bits == 8 else "int4" for layer in layers]
    assert [executed[n.name] for n in net.operators() if op_name(n) == "linear"] == wanted


def test_the_layout_is_the_operators():
    """Read back by its own description: low bits first, every row of zero points from a new byte on."""
    layer = Few(70, 3, "int4", "group:16", symmetric=False)
    model = to_onnx(narrow(layer, shape=(70,), bits=[4]), Style(packed=True))
    (node,) = model.graph.node
    held = {t.name: to_array(t) for t in model.graph.initializer}
    packed, scale, zeros = (held[name] for name in node.input[1:4])
    assert (packed.shape, scale.shape, zeros.shape) == ((3, 5, 8), (3, 5), (3, 3))
    unpacked = [np.stack([a & 15, a >> 4], -1).reshape(3, -1).astype(np.float32) for a in (packed, zeros)]
    codes, zero = unpacked[0].reshape(3, 5, 16), unpacked[1][:, :5]
    weight = ((codes - zero[..., None]) * scale[..., None]).reshape(3, -1)[:, :70]
    np.testing.assert_allclose(weight, layer.weight().numpy(), rtol=1e-6)


def test_weights_take_their_bits_and_their_scales():
    layers = [Few(256, 64, f"int{bits}", "group:32") for bits in (2, 4)]
    nn.init.zeros_(layers[0].bias)  # alike, they would be stored once
    model = to_onnx(branches(layers, (256,)), Style(packed=True))
    onnx.checker.check_model(model)
    held = sum(len(t.raw_data) for t in model.graph.initializer)
    assert held == 256 * 64 * (2 + 4) // 8 + 2 * 4 * (64 * 8 + 64)


class Shared(nn.Module):
    """One weight, read by two products with and without a bias."""

    def __init__(self):
        super().__init__()
        self.linear = Few(32, 5, "int4", "group:16")

    def forward(self, x):
        weight = self.linear.weight()
        return F.linear(x[:, 0], weight, self.linear.bias) + F.linear(x[:, 1] * 2, weight)


def test_a_weight_that_two_products_read_is_stored_once():
    net = narrow(Shared(), shape=(2, 32), bits=[4])
    runner = engine.compile(net, threads=1)
    assert kinds(runner.model).count("MatMulNBits") == 2
    packed = [t for t in runner.model.graph.initializer if t.data_type == onnx.TensorProto.UINT8]
    assert [list(t.dims) for t in packed] == [[5, 2, 8]]
    x = draw(4, 2, 32)
    torch.testing.assert_close(runner(x), net(x), rtol=0, atol=1e-5)


class BothWays(nn.Module):
    """A weight that is read as it is and across: only the first is a linear layer."""

    def __init__(self):
        super().__init__()
        self.linear = Few(32, 32, "int4", "group:16")

    def forward(self, x):
        weight = self.linear.weight()
        return F.linear(x, weight) + x @ weight


def test_a_weight_read_otherwise_too_stays_for_that_reader():
    net = narrow(BothWays(), shape=(3, 32), bits=[4])
    runner = engine.compile(net, threads=1)
    assert sorted(k for k in kinds(runner.model) if k != "Add") == ["DequantizeLinear", "MatMul", "MatMulNBits"]
    x = draw(4, 3, 32)
    torch.testing.assert_close(runner(x), net(x), rtol=0, atol=1e-4)


def test_what_the_operator_cannot_say_is_dequantized():
    layers = [Few(36, 8, *text.split()) for text in ("int8 group:4", "int4 filters:4", "int8 channel", "int3 group:12")]
    net = branches(layers, (36,))
    runner = engine.compile(net, threads=1)
    assert kinds(runner.model).count("DequantizeLinear") == 4
    assert "MatMulNBits" not in kinds(runner.model)
    x = draw(4, 36)
    for ours, theirs in zip(runner(x), net(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_other_readers_of_the_file_get_onnx_operators_alone():
    model = to_onnx(narrow(Few(32, 5, "int4", "group:16"), shape=(32,), bits=[4]))
    assert {o.domain for o in model.opset_import} == {""}
    assert kinds(model)[0] == "DequantizeLinear"


def test_products_in_int8_are_an_option():
    net = narrow(Few(256, 64, "int4", "group:32"), shape=(256,), bits=[4])
    runner = OnnxRuntime(int8_products=True).compile(net, threads=1)
    assert [a["accuracy_level"] for a in attributes(runner.model)] == [4]
    x = draw(8, 256)
    error = float((runner(x) - net(x)).norm() / net(x).norm())
    assert 1e-4 < error < 0.02, "8 bits for an input, not 24"


@pytest.mark.parametrize("bits", [2, 4])
def test_a_channel_is_cut_into_the_cheapest_blocks(bits):
    def size(width, block):
        return sum(block * bits / 8 + 4 for _ in range(0, width, block))

    for width in (*range(1, 600, 13), 4096):
        assert size(width, _cheapest(width, bits)) == min(size(width, block) for block in BLOCKS)


def test_layers_one_behind_the_other():
    steps = (Few(64, 48, "int4", "group:32"), torch.relu, Few(48, 7, "uint4", "group:32", symmetric=False))
    net = narrow(*steps, shape=(64,), bits=[4, 4])
    runner, x = engine.compile(net, threads=1), draw(3, 64)
    torch.testing.assert_close(runner(x), net(x), rtol=0, atol=1e-5)
    assert kinds(runner.model) == ["MatMulNBits", "Relu", "MatMulNBits"]
