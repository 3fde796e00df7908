"""The three operators: values, gradients, and life inside torch.export."""

import pytest
import torch
from hypothesis import given
from numerics.strategies import CODED, FLOATS, cases
from torch import nn

from tersor.numerics import QTensor, QuantSpec, expand, fake_quantize, qparams, quantize, quantize_tensor

EVERY = [*CODED, "binary", *FLOATS]


@given(cases(EVERY))
def test_fake_quantization_is_quantization_there_and_back(case):
    spec, x = case
    q = quantize_tensor(x / 2, spec)
    there = QTensor(quantize(x, q.scale, q.zero_point, spec), q.scale, q.zero_point, spec)
    assert torch.equal(fake_quantize(x, q.scale, q.zero_point, spec), there.dequantize())
    if spec.format.kind != "float":
        assert torch.equal(
            torch.ops.tersor.dequantize(q.codes, q.scale, q.zero_point, spec.block), q.dequantize()
        )


@given(cases())
def test_the_gradient_passes_inside_the_range_and_stops_outside(case):
    spec, x = case
    low, high = (-1.0 if spec.format.signed or not spec.symmetric else 0.0), 2.0
    scale, zero_point = qparams(low, high, spec)
    x = (x / 100).requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((fake_quantize(x, scale, zero_point, spec) * weight).sum(), x)
    lowest, highest = ((bound - zero_point.double()) * scale.double() for bound in (spec.low, spec.high))
    away = torch.maximum(lowest - x.double(), x.double() - highest) / scale.double()
    assert torch.equal(gradient[away < 0.499], weight[away < 0.499])
    assert (gradient[away > 0.501] == 0).all()


@pytest.mark.parametrize(("name", "limit"), [("fp8_e4m3", 448.0), ("fp8_e5m2", 57344.0), ("binary", 1.0)])
def test_the_gradient_of_a_cast(name, limit):
    x = torch.tensor([0.3, limit, -limit, limit * 1.01, -limit * 2]).mul(0.5).requires_grad_()
    y = torch.ops.tersor.cast(x, name, torch.tensor(0.5))
    assert y.abs().max().item() == limit / 2
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1, 1, 0, 0]


def test_channels_and_groups_give_each_gradient_its_own_range():
    x = torch.tensor([[0.9, 0.9, 3.0], [0.9, 30.0, -30.0]], requires_grad=True)
    scale = torch.tensor([[1.0 / 7, 1.0], [1.0 / 7, 4.0]])
    y = fake_quantize(x, scale, torch.zeros(2, 2), QuantSpec("int4", "group:2"))
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert y[0, 2].item() == 3.0
    assert y[1, 2].item() == -28.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_input_stays(dtype):
    x = torch.linspace(-1, 1, 9).to(dtype)
    scale, zero = torch.tensor(0.25), torch.tensor(0.0)
    got = fake_quantize(x, scale, zero, QuantSpec("int4"))
    assert got.dtype == dtype
    assert got.tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1]
    assert torch.ops.tersor.cast(x, "fp8_e4m3", scale).dtype == dtype


def test_the_input_is_left_as_it_was():
    x = torch.linspace(-3, 3, 24).reshape(1, 2, 3, 4)
    before, scale = x.clone(), torch.tensor(0.1)
    torch.ops.tersor.fake_quantize(x, scale, scale * 0, -8, 7, 0)
    torch.ops.tersor.fake_quantize(x, scale.reshape(1, 1, 1, 1).expand(1, 2, 1, 1), scale * 0, -8, 7, 0)
    torch.ops.tersor.cast(x, "fp8_e4m3", scale)
    torch.ops.tersor.cast(x, "fp8_e4m3", torch.tensor(1.0))
    assert torch.equal(x, before)


def test_torch_accepts_the_operators():
    image = torch.randn(2, 3, 4, 5, requires_grad=True)
    strided = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    channel = torch.rand(1, 3, 1, 1) + 0.1
    one, zero, zeros = torch.tensor(0.1), torch.tensor(3.0), torch.full((1, 3, 1, 1), 3.0)
    for x in (image, strided):
        torch.library.opcheck(torch.ops.tersor.fake_quantize, (x, one, zero, -128, 127, 0))
        torch.library.opcheck(torch.ops.tersor.fake_quantize, (x, channel, zeros, 0, 255, 0))
        torch.library.opcheck(torch.ops.tersor.cast, (x, "fp8_e5m2", channel))
    codes = torch.randint(-7, 8, (4, 6), dtype=torch.int8)
    torch.library.opcheck(torch.ops.tersor.dequantize, (codes, torch.rand(4, 2), torch.zeros(4, 2), 4))


class Quantized(nn.Module):
    """A convolution with quantized weights between a quantized input and an FP8 output."""

    def __init__(self):
        super().__init__()
        weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        q = quantize_tensor(weight, QuantSpec("int8", "channel"))
        for name, value in {"codes": q.codes, "scale": q.scale, "zero": q.zero_point}.items():
            self.register_buffer(name, value)
        self.register_buffer("input_scale", torch.tensor(0.02))
        self.register_buffer("input_zero", torch.tensor(114.0))

    def forward(self, x):
        x = torch.ops.tersor.fake_quantize(x, self.input_scale, self.input_zero, 0, 255, 0)
        weight = torch.ops.tersor.dequantize(self.codes, self.scale, self.zero, 0)
        return torch.ops.tersor.cast(torch.conv2d(x, weight), "fp8_e4m3", self.input_scale)


def test_the_operators_survive_export_with_a_dynamic_batch():
    net = Quantized().eval()
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(net, (torch.randn(2, 3, 9, 9),), dynamic_shapes=(batch,))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls == [
        "tersor.fake_quantize.default",
        "tersor.dequantize.default",
        "aten.conv2d.default",
        "tersor.cast.default",
    ]
    for count in (1, 5):
        x = torch.randn(count, 3, 9, 9)
        assert torch.equal(program.module()(x), net(x))
    decomposed = [str(node.target) for node in program.run_decompositions().graph.nodes]
    assert "tersor.fake_quantize.default" in decomposed


def test_a_scale_of_one_element_and_the_same_scale_for_all_agree():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    spec = QuantSpec("uint8", symmetric=False)
    scale, zero_point = qparams(-1.0, 1.3, spec)
    rows = [t.expand(4, 1).contiguous() for t in (scale, zero_point)]
    assert torch.equal(fake_quantize(x, scale, zero_point, spec), fake_quantize(x, *rows, spec))
    assert expand(rows[0], x.shape, 0).shape == (4, 1)
