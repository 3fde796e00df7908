"""The TensorRT profile: what its file looks like, and that the file computes what the simulation does."""

import onnx
import pytest
import torch
from quantized import Q, QConv, QLinear, draw, network
from torch import nn

import tersor
from tersor.engines import ENGINES
from tersor.engines.tensorrt import TensorRT
from tersor.engines.tensorrt.runner import FILES
from tersor.errors import EngineError, RecipeError
from tersor.network.network import Network
from tersor.numerics.spec import QuantSpec

tensorrt = ENGINES["tensorrt"]

SYMMETRIC = QuantSpec("int8", symmetric=True)


class Block(nn.Module):
    """A residual block in TensorRT's way: the inputs of layers are quantized, and of the sum the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.a, self.b, self.mean = (Q(s, spec=SYMMETRIC) for s in (0.04, 0.02, 0.02, 0.02))
        self.first, self.second, self.third = QConv(3, 8), QConv(8, 8), QConv(8, 8)
        self.head = QLinear(8, 4)

    def forward(self, x):
        x = self.a(self.first(self.x(x)).relu())
        x = self.b((self.third(self.b(self.second(x).relu())) + x).relu())
        return self.head(self.mean(x.mean((2, 3))))


@pytest.fixture(scope="module")
def block() -> Network:
    torch.manual_seed(3)
    return network(Block())


@pytest.fixture(scope="module")
def runner(block):
    return tensorrt.compile(block, threads=1)


def arrays(model: onnx.ModelProto) -> dict[str, object]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def test_its_numbers_are_those_of_the_simulation(block, runner):
    for batch in (1, 6):
        # Within the calibrated range, as TensorRT's own int8 has one code more at the bottom.
        x = draw(batch, 3, 8, 8, seed=batch).clamp(-4, 4)
        torch.testing.assert_close(runner(x), block(x), rtol=1e-5, atol=1e-5)


def test_every_quantizer_is_int8_around_zero_and_written_out(runner):
    model, held = runner.model, arrays(runner.model)
    quantizers = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(quantizers) >= 10
    for node in quantizers:
        zero_point = held[node.input[2]]
        assert zero_point.dtype == "int8"
        assert not zero_point.any()


def test_weights_are_int8_per_output_channel_and_biases_float(runner):
    model, held = runner.model, arrays(runner.model)
    maker = {o: n for n in model.graph.node for o in n.output}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4
    for node in layers:
        weight = maker[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        assert held[weight.input[0]].dtype == "int8"
        assert held[weight.input[1]].shape == (len(held[weight.input[0]]),)
        assert next(a.i for a in weight.attribute if a.name == "axis") == 0
        assert held[node.input[2]].dtype == "float32"
        assert maker[node.input[0]].op_type == "DequantizeLinear"


def test_activations_and_sums_stay_where_tensorrt_merges_them(runner):
    model = runner.model
    reader = {i: n.op_type for n in model.graph.node for i in n.input}
    maker = {o: n.op_type for n in model.graph.node for o in n.output}
    assert [reader[n.output[0]] for n in model.graph.node if n.op_type == "Conv"] == ["Relu", "Relu", "Add"]
    add = next(n for n in model.graph.node if n.op_type == "Add")
    assert sorted(maker[i] for i in add.input) == ["Conv", "DequantizeLinear"]
    assert "Clip" not in {n.op_type for n in model.graph.node}


def test_asymmetric_activations_are_refused_before_any_data_is_run():
    recipe = tersor.Recipe(activations=tersor.Quantization(format="int8", symmetric=False))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    task = tersor.Task("t", model, (torch.zeros(1, 3, 8, 8),), lambda: pytest.fail("data was run"))
    with pytest.raises(RecipeError, match=r"^input: tensorrt takes only symmetric activations .*`symmetric: false`"):
        tersor.compress(task, recipe, "tensorrt", progress=False)


def test_saved_it_says_how_to_build_an_engine_and_loads_again(runner, tmp_path):
    assert runner.save(tmp_path) == FILES
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    text = (tmp_path / "README.txt").read_text(encoding="utf8")
    assert "trtexec --onnx=model.onnx --stronglyTyped" in text
    assert "--minShapes=x:1x3x8x8" in text
    x = draw(2, 3, 8, 8)
    assert torch.equal(tensorrt.load(tmp_path, threads=1)(x), runner(x))


def test_it_tells_nothing_of_what_it_cannot_know(runner):
    assert runner.executed() == []


def test_its_policy_is_the_documentation(runner):
    policy = tensorrt.policy()
    assert policy.activation == SYMMETRIC
    assert policy.weight == QuantSpec("int8", "channel", symmetric=True)
    assert policy.row("arithmetic", "add").shortcut_only == "always"
    assert policy.row("arithmetic", "mul") is None
    assert not policy.needs_output_quantizer


def test_an_unreadable_file_and_missing_packages_are_errors(tmp_path, monkeypatch, block):
    (tmp_path / "model.onnx").write_bytes(b"\x08not a model")
    with pytest.raises(EngineError, match=r"model\.onnx"):
        tensorrt.load(tmp_path)
    monkeypatch.setattr(TensorRT, "version", lambda self: None)
    assert ENGINES["onnxruntime"].version() is not None
    with pytest.raises(EngineError, match=r'pip install "tersor\[onnx\]"'):
        tensorrt.compile(block)
