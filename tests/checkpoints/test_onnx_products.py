"""Products of inputs quantized at run time in ONNX: ONNX's own arithmetic, in the file and in ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from quantized import Branches, QConv, QLinear, Then, draw, network
from torch import nn
from torch.nn import functional as F

from tersor.checkpoints.onnx.qdq import to_onnx
from tersor.engines import ENGINES
from tersor.errors import EngineError
from tersor.numerics.spec import QuantSpec

engine = ENGINES["onnxruntime"]
# Both widen the range to hold 0; below 1e-25 ours keeps its scale from vanishing.
FLOATS = st.one_of(st.just(0.0), *(st.floats(a, b, width=32) for a, b in ((2**-80, 2.0**80), (-(2.0**80), -(2**-80)))))


def whole(x, high=255):
    return torch.ops.tersor.quantize_whole(x, high)


def unoptimized(model):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def there_and_back():
    """DynamicQuantizeLinear and DequantizeLinear as ONNX Runtime has them."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, [None])] for n in "xy"]
    graph = helper.make_graph(nodes, "there_and_back", *ends)
    session = unoptimized(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@given(st.lists(FLOATS, min_size=1, max_size=9))
def test_the_simulation_is_dynamic_quantize_linear(there_and_back, values):
    x = torch.tensor(values)
    torch.testing.assert_close(whole(x), there_and_back(x), rtol=1e-6, atol=0)


def test_codes_span_the_whole_tensor_and_zero_is_one_of_them():
    x = torch.tensor([[-1.0, 0.0, 0.3], [3.0, 1.0, 1.5]])
    step = 4 / 255
    assert torch.allclose(whole(x), ((x / step).round()) * step, atol=1e-6)
    assert whole(x)[0, 1] == 0
    assert torch.allclose(whole(torch.tensor([5.0, 2.0])), (torch.tensor([255.0, 102.0])) / 51), "0 is in the range"
    assert whole(torch.tensor([0.0, 15.0, 7.4]), 15).tolist() == [0, 15, 7]
    assert whole(torch.zeros(0, 3)).shape == (0, 3)
    assert whole(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_the_gradient_passes_straight_through():
    x = torch.tensor([-1.0, 0.2, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad((whole(x) * torch.tensor([1.0, 2.0, 3.0])).sum(), x)
    assert gradient.tolist() == [1, 2, 3]


class Shared(nn.Module):
    """One weight read by two products of different inputs, as a recurrent layer's is in every step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = QLinear(6, 5)

    def forward(self, x):
        weight, bias = self.linear.weight(), self.linear.bias
        return F.linear(whole(x[:, 0]), weight, bias) + F.linear(whole(x[:, 1] * 2), weight)


@pytest.mark.exact_int8
def test_a_weight_that_two_products_read_is_stored_once():
    net = network(Shared(), shape=(2, 6))
    model = to_onnx(net)
    onnx.checker.check_model(model, full_check=True)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    codes = [a for a in held.values() if a.dtype == np.int8]
    assert len(codes) == 1
    assert np.array_equal(codes[0].T, net.tensor("step0.linear.weight.codes"))
    assert [a.shape for a in held.values() if a.dtype == np.float32 and a.ndim].count((5,)) == 2, "scale and bias"
    assert [n.op_type for n in model.graph.node].count("MatMulInteger") == 2
    x = draw(4, 2, 6)
    torch.testing.assert_close(engine.compile(net, threads=1)(x), net(x), rtol=0, atol=1e-5)


@pytest.mark.exact_int8
@pytest.mark.parametrize(
    ("shape", "granularity"), [((6,), "channel"), ((3, 6), "tensor"), ((2, 3, 6), "channel")]
)
def test_the_file_and_the_runtime_compute_what_is_simulated(shape, granularity):
    torch.manual_seed(0)
    net = network(whole, QLinear(6, 5, QuantSpec("int8", granularity)), torch.tanh, shape=shape)
    runner = engine.compile(net, threads=1)
    file = unoptimized(runner.model)
    for batch in (1, 4):
        x = draw(batch, *shape) * 10
        torch.testing.assert_close(runner(x), net(x), rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(file.run(None, {"x": x.numpy()})[0]), net(x), rtol=0, atol=1e-5)
    assert {r.nodes: r.precision for r in runner.executed()} == {("linear",): "int8", ("tanh",): "fp32"}


@pytest.mark.exact_int8
def test_products_of_one_input_share_its_codes():
    net = network(whole, Branches(QLinear(6, 5), QLinear(6, 4)), shape=(6,))
    runner, x = engine.compile(net, threads=1), draw(4, 6)
    assert [n.op_type for n in runner.model.graph.node].count("DynamicQuantizeLinear") == 1
    for found, wanted in zip(runner(x), net(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert {r.nodes[0]: r.precision for r in runner.executed() if r.nodes} == {"linear": "int8", "linear_1": "int8"}


QUICK = ("a convolution", "zero points")
REFUSED = {
    "a convolution": ((whole, QConv(3, 4)), (3, 5, 5), r"^conv2d: ONNX has no integer Conv for"),
    "a weight in float": ((whole, nn.Linear(6, 5)), (6,), r"^linear: ONNX has no integer Gemm for"),
    "scales of groups": ((whole, QLinear(8, 5, QuantSpec("int8", "group:4"))), (8,), r"^linear: ONNX has no integer"),
    "zero points": ((whole, QLinear(6, 5, QuantSpec("int8", "channel", symmetric=False))), (6,), r"^linear: ONNX"),
    "what is no product": ((whole, torch.relu), (6,), r"^relu: ONNX has no integer Relu"),
    "two activations": ((lambda x: whole(x) @ x.transpose(1, 2),), (3, 6), r"^matmul: ONNX has no integer MatMul"),
    "another format": ((lambda x: whole(x, 15), QLinear(6, 5)), (6,), r"^quantize_whole: .* supports only uint8"),
}


@pytest.mark.parametrize("what", [w if w in QUICK else pytest.param(w, marks=pytest.mark.slow) for w in REFUSED])
def test_what_onnx_has_no_integers_for_is_refused_by_name(what):
    steps, shape, words = REFUSED[what]
    with pytest.raises(EngineError, match=words):
        to_onnx(network(Then(*steps), shape=shape))
