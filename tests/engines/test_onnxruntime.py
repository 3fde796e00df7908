"""ONNX Runtime: what it computes in, why it falls back, and that it agrees with the simulation."""

import sys

import onnx
import pytest
import torch
from quantized import Branches, Q, QConv, QLinear, Residual, Then, draw, network
from torch import nn
from torch.nn import functional as F

from tersor.engines import ENGINES
from tersor.engines.base import Executed
from tersor.engines.onnxruntime.runner import FILES, OnnxRuntimeRunner
from tersor.errors import EngineError
from tersor.network.corrections.int32_bias import fit_biases
from tersor.network.network import Network

engine = ENGINES["onnxruntime"]


@pytest.fixture(scope="module")
def residual() -> Network:
    torch.manual_seed(2)
    return network(Residual())


@pytest.fixture(scope="module")
def runner(residual):
    return engine.compile(residual, threads=1)


def account(net: Network) -> dict[str, Executed]:
    """By the first of our nodes that each executed operator does."""
    return {row.nodes[0]: row for row in engine.compile(net, threads=1).executed() if row.nodes}


def test_a_residual_network_runs_in_int8_throughout(runner):
    rows = {row.nodes[0]: row for row in runner.executed() if row.nodes}
    expected = {
        "conv2d": "QLinearConv",
        "conv2d_1": "QLinearConv",
        "add": "QLinearAdd",
        "mean": "QLinearGlobalAveragePool",
        "linear": "QGemm",
    }
    assert {name: row.op for name, row in rows.items() if name in expected} == expected
    assert {row.precision for row in runner.executed()} == {"int8"}
    assert [row.note for row in rows.values()] == [None] * len(rows)


def test_what_was_merged_is_found_in_its_neighbour(runner):
    done = {row.nodes[0]: row.nodes for row in runner.executed() if row.nodes}
    assert done["conv2d"] == ("conv2d", "relu")
    assert done["add"] == ("add", "relu_1")


HEAD = nn.Linear(16, 4)


def test_the_float_network_is_accounted_for_node_by_node():
    net = network(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), lambda x: x.mean((2, 3)), HEAD)
    rows = engine.compile(net, threads=1).executed()
    assert {row.precision for row in rows} == {"fp32"}
    done = [name for row in rows for name in row.nodes]
    assert sorted(done) == sorted(n.name for n in net.operators())
    assert next(row.op for row in rows if "relu" in row.nodes) == "Conv"


@pytest.mark.exact_int8
def test_the_numbers_are_those_of_the_simulation_at_any_batch(residual, runner):
    simulation = fit_biases(residual)
    unit = 0.01 * 0.02  # far below: what one code of the mean moves the output by
    for batch in (1, 7):
        x = draw(batch, 3, 8, 8, seed=batch)
        wrong = (runner(x) - simulation(x)).abs() > unit
        assert wrong.float().mean() <= 0.02


RULES = {
    "its value goes to the output, not directly to a quantizer": lambda: network(Q(0.02, 128), QConv(3, 4)),
    "its value goes to Tanh, not directly to a quantizer": lambda: network(
        Q(0.02, 128), QConv(3, 4), torch.tanh
    ),
    "one of its inputs is not quantized": lambda: network(QConv(3, 4), Q(0.02, 128)),
    "its weight is not quantized": lambda: network(Q(0.02, 128), nn.Conv2d(3, 4, 3), Q(0.02, 128)),
    "its value has consumers other than one quantizer": lambda: network(
        Q(0.02, 128), QConv(3, 4), Branches(Then(Q(0.02, 128), torch.neg), Then(Q(0.03, 128), torch.neg))
    ),
    "it has no integer kernel": lambda: network(Q(0.02, 128), Transposed(), Q(0.02, 128)),
}


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = QConv(3, 3)

    def forward(self, x):
        return F.conv_transpose2d(x, self.conv.weight())


@pytest.mark.parametrize("rule", RULES)
def test_a_fall_to_float_names_its_rule(rule):
    row = next(r for name, r in account(RULES[rule]()).items() if name.startswith("conv"))
    assert row.precision == "fp32"
    assert row.note is not None
    assert rule in row.note
    assert row.note.startswith("ONNX Runtime: Conv")


def test_an_unmerged_activation_leaves_the_convolution_in_int8():
    rows = account(network(Q(0.02, 128), QConv(3, 4), Q(0.02, 128), torch.tanh))
    assert (rows["conv2d"].op, rows["conv2d"].precision) == ("QLinearConv", "int8")
    assert (rows["tanh"].op, rows["tanh"].precision) == ("Tanh", "fp32")


@pytest.mark.parametrize(
    ("step", "op"),
    [
        (torch.sigmoid, "QLinearSigmoid"),
        (lambda x: F.avg_pool2d(x, 2), "QLinearAveragePool"),
        (lambda x: x * Q(0.03, 100)(x), "QLinearMul"),
        (lambda x: F.max_pool2d(x, 2), "MaxPool"),
    ],
)
def test_integer_kernels_beyond_layers(step, op):
    # A convolution before it, since a graph without one is left in its own layout.
    net = network(Q(0.02, 128), QConv(3, 4), Q(0.02, 128), step, Q(0.004 if "oid" in op else 0.02, 0))
    rows = [row for row in engine.compile(net, threads=1).executed() if op in row.op]
    assert [row.precision for row in rows] == ["int8"]


def test_a_linear_layer_on_three_dimensions_is_int8():
    rows = account(network(Q(0.02, 128), QLinear(6, 4), shape=(5, 6)))
    assert (rows["linear"].op, rows["linear"].precision) == ("MatMulIntegerToFloat", "int8")


def test_a_weight_that_the_plan_keeps_in_float_stays_in_float():
    # Left alone, ONNX Runtime quantizes the weight of a layer that stands between two quantizers.
    torch.manual_seed(0)
    net = network(Q(0.02, 128), nn.ConvTranspose2d(3, 4, 3), Q(0.0005, 128), torch.neg)
    x = draw(4, 3, 8, 8)
    off = (engine.compile(net, threads=1)(x) - net(x)).abs() > 1e-5
    assert off.float().mean() < 0.005


@pytest.mark.exact_int8
def test_a_bias_beyond_int32_is_not_cut_off():
    conv = QConv(3, 4)
    conv.weight.scale[1] = 1e-12
    conv.bias.data = torch.tensor([0.1, 0.9, -0.2, 0.3])
    net = network(Q(0.02, 128), conv, Q(0.01, 128), torch.neg)
    x = draw(4, 3, 8, 8)
    runner = engine.compile(net, threads=1)
    assert "QLinearConv" in [row.op for row in runner.executed()]
    # One code at most, where a value lies between two.
    assert (runner(x) - net(x)).abs().max() <= 0.0101


def test_saved_and_loaded_it_computes_the_same_and_tells_the_same(runner, tmp_path):
    assert runner.save(tmp_path) == FILES
    assert sorted(p.name for p in tmp_path.iterdir()) == list(FILES)
    again = engine.load(tmp_path, threads=1)
    x = draw(3, 3, 8, 8)
    assert torch.equal(again(x), runner(x))
    assert again.executed() == runner.executed()


def test_several_inputs_and_outputs_keep_their_order():
    class Two(nn.Module):
        def forward(self, a, b):
            return a - b, b

    from tersor.network.capture import capture

    net = capture(Two().eval(), (torch.zeros(2, 3), torch.zeros(2, 3)))
    a, b = draw(4, 3, seed=1), draw(4, 3, seed=2)
    difference, second = engine.compile(net, threads=1)(a, b)
    assert torch.equal(difference, a - b)
    assert torch.equal(second, b)


@pytest.mark.slow
def test_threads_are_those_asked_for(residual):
    assert engine.compile(residual, threads=2).threads == 2
    assert engine.compile(residual).threads == torch.get_num_threads()


def test_a_wrong_shape_or_dtype_is_refused_with_the_shape(runner):
    with pytest.raises(EngineError, match=r"\(2, 4, 8, 8\)"):
        runner(torch.zeros(2, 4, 8, 8))
    with pytest.raises(EngineError, match="refuses inputs"):
        runner(torch.zeros(2, 3, 8, 8, dtype=torch.float64))


def test_another_precision_is_refused(residual):
    with pytest.raises(EngineError, match="FP32, not in bf16"):
        engine.compile(residual, precision="bf16")


def test_an_altered_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08not a model")
    with pytest.raises(EngineError, match=r"model\.onnx"):
        engine.load(tmp_path)


def test_what_it_cannot_load_is_an_error_with_its_own_words():
    with pytest.raises(EngineError, match="cannot load"):
        OnnxRuntimeRunner(onnx.ModelProto(), 1)


@pytest.mark.parametrize("package", ["onnxruntime", "onnx", "onnxscript"])
def test_without_its_packages_it_says_what_to_install(residual, monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert engine.version() is None
    with pytest.raises(EngineError, match=r'pip install "tersor\[onnx\]"'):
        engine.compile(residual)
    with pytest.raises(EngineError, match=r'pip install "tersor\[onnx\]"'):
        engine.load(tmp_path)
