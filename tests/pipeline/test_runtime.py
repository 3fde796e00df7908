"""Activations quantized at run time, in the graph: what is planned, simulated, and computed by the engine."""

import pytest
import torch
from torch import nn

import tersor
from tersor.engines import engine as find_engine
from tersor.engines.numbers import check_numbers
from tersor.errors import RecipeError
from tersor.network.network import op_name
from tersor.numerics.fakequant import quantize_rows_op
from tersor.pipeline.graph.prepare import prepare
from tersor.recipe import PRESETS, Quantization, resolve


class Mixed(nn.Module):
    """A convolution, a residual sum and two linear layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.up, self.down = nn.Conv1d(4, 256, 1), nn.Linear(256, 512), nn.Linear(512, 256)

    def forward(self, x):
        x = self.conv(x).transpose(1, 2)
        return x + self.down(torch.relu(self.up(x)))


@pytest.fixture(scope="module")
def task():
    batches = [(torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    return tersor.Task("mixed", Mixed().eval(), (torch.zeros(1, 4, 16),), lambda: batches)


def outliers(task):
    """Inputs in which one token of eight is a hundred times as large."""
    x = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(9))
    x[:, :, ::8] *= 100
    return (x,)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_only_linear_layers_are_quantized_and_only_when_they_run(task, engine):
    done = tersor.compress(task, "int8-dynamic", engine, report=False, progress=False)
    planned = {layer.name: layer.planned for layer in done.plan.layers}
    assert planned["up"] == planned["down"] == "int8"
    assert planned["conv"] == "fp32"
    assert not done.plan.activations()
    assert [s.name for s in done.plan.runtime()] == ["up", "down"]
    names = [op_name(n) for n in done.network.operators()]
    assert names.count("quantize_rows") == 2
    assert "fake_quantize" not in names


def test_folded_layers_are_planned_by_their_width():
    torch.manual_seed(0)
    layers = nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.Flatten(), nn.Linear(128, 16), nn.BatchNorm1d(16)
    net = nn.Sequential(*layers, nn.Linear(16, 8)).eval()
    task = tersor.Task("folded", net, (torch.zeros(1, 3, 8),), lambda: [])
    ready = prepare(task, resolve("int8-dynamic"), find_engine("openvino").policy())
    planned = {layer.name: (layer.planned, layer.weight_format) for layer in ready.plan.layers}
    assert planned["0"] == ("fp32", "fp32")
    assert planned["3"] == ("int8", "int8")
    assert planned["5"] == ("fp32", "int8")


def test_the_engine_computes_in_integers(task):
    done = tersor.compress(task, "int8-dynamic", "openvino", report=False, progress=False)
    weights = tersor.compress(task, "int8-weight", "openvino", report=False, progress=False)
    found = check_numbers(done.runner, done.network, weights.network, outliers(task))
    assert found.to_simulation < 0.5 * found.to_float
    floats = check_numbers(weights.runner, weights.network, done.network, outliers(task))
    assert floats.to_simulation < 0.01 * floats.to_float


@pytest.mark.slow
def test_the_report_counts_and_the_folder_loads(task, tmp_path):
    done = tersor.compress(task, "int8-dynamic", "openvino", progress=False)
    assert done.report.ratios.compression > 2.5
    done.save(tmp_path / "out")
    x = outliers(task)
    assert torch.equal(tersor.load(tmp_path / "out").runner(*x), done.runner(*x))


def test_weights_alone_leave_the_arithmetic_in_float(task):
    done = tersor.compress(task, "int8-weight", "openvino", report=False, progress=False)
    assert {layer.planned for layer in done.plan.layers} == {"fp32"}
    assert {layer.weight_format for layer in done.plan.layers if layer.weight_format} == {"int8"}
    x = outliers(task)[0]
    with torch.no_grad():
        exact = task.model(x)
    assert float((done.runner(x) - exact).norm() / exact.norm()) < 0.01


def test_an_engine_that_cannot_says_so(task):
    tokens = Quantization(format="int8", granularity="token", range="runtime")
    recipe = PRESETS["int8-dynamic"]().model_copy(update={"activations": tokens})
    with pytest.raises(RecipeError, match=r"onnxruntime cannot quantize activations .* it takes uint8, asymmetric"):
        tersor.compress(task, recipe, "onnxruntime", report=False, progress=False)


def test_rows_have_scales_of_their_own():
    x = torch.tensor([[1.0, -0.3, 100.0, 30.0], [0.0, 0.0, 0.0, 0.0]])
    whole, pairs = quantize_rows_op(x, 127, 0), quantize_rows_op(x, 127, 2)
    assert torch.allclose(whole[0], (x[0] * 1.27).round() / 1.27)
    assert whole[1].eq(0).all()
    assert torch.allclose(pairs[0, :2], (x[0, :2] * 127).round() / 127)
    assert quantize_rows_op(torch.ones(3, 5), 7, 2).shape == (3, 5), "a ragged last group"


class Reader(nn.Module):
    """An embedding that is also the last layer's weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.words, self.middle, self.head = nn.Embedding(200, 64), nn.Linear(64, 64), nn.Linear(64, 200, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.middle(self.words(ids))))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_embeddings_are_stored_as_codes_and_ties_hold(engine):
    ids = (torch.arange(24).reshape(2, 12),)
    task = tersor.Task("reader", Reader().eval(), ids, lambda: [ids])
    done = tersor.compress(task, "int8-dynamic", engine, report=False, progress=False)
    assert {layer.name: layer.weight_format for layer in done.plan.layers if layer.weight_format} == {
        "words": "int8",
        "middle": "int8",
        "head": "int8",
    }
    codes = [t for _, t in done.network.tensors() if t.dtype == torch.int8 and t.shape == (200, 64)]
    assert len(codes) == 1, "tied weights are one tensor"
    with torch.no_grad():
        exact = task.model(*ids)
    assert float((done.runner(*ids) - exact).norm() / exact.norm()) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fp16", "bf16"])
def test_half_precision_halves_every_weight(recipe):
    ids = (torch.arange(24).reshape(2, 12),)
    task = tersor.Task("reader", Reader().eval(), ids, lambda: [ids])
    done = tersor.compress(task, recipe, "openvino", report=False, progress=False)
    assert {layer.weight_format for layer in done.plan.layers if layer.weight_format} == {recipe}
    with torch.no_grad():
        exact = task.model(*ids)
    assert float((done.runner(*ids) - exact).norm() / exact.norm()) < 0.01
    halves = [t for _, t in done.network.tensors() if t.dtype in (torch.float16, torch.bfloat16)]
    assert sum(t.numel() for t in halves) == 200 * 64 + 64 * 64, "tied weights once"
