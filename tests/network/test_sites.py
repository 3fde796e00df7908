"""Quantizers stand where the engines need them, and rules are obeyed."""

import pytest
import torch
from torch import nn

from tersor.engines import ENGINES
from tersor.errors import RecipeError
from tersor.network.capture import capture
from tersor.network.rewrites.fold_batchnorm import FoldBatchNorm
from tersor.network.sites import plan
from tersor.recipe import Quantization, Recipe, Rule, int8_static

openvino, onnxruntime, tensorrt = (ENGINES[name] for name in ("openvino", "onnxruntime", "tensorrt"))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.body(x) + x)
        return self.head(self.pool(x).mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FoldBatchNorm()(capture(Residual().eval(), (torch.zeros(1, 3, 8, 8),)))


@pytest.mark.parametrize("engine", [openvino, onnxruntime, tensorrt])
def test_one_quantizer_a_tensor_and_none_inside_a_layer(network, engine):
    made = plan(network, int8_static().quantize, engine.policy())
    nodes = [s.node for s in made.activations()]
    assert len(nodes) == len(set(nodes))
    assert "conv2d" not in nodes, "a quantizer between a convolution and its ReLU"
    assert {"x", "relu"} <= set(nodes)
    assert "linear" not in nodes, "the logits stay float"
    assert [s.name for s in made.weights()] == ["stem", "body.0", "head"]


@pytest.mark.parametrize(("engine", "both"), [(openvino, True), (onnxruntime, True), (tensorrt, False)])
def test_both_branches_of_a_sum_before_a_relu(network, engine, both):
    nodes = {s.node for s in plan(network, int8_static().quantize, engine.policy()).activations()}
    assert ("conv2d_1" in nodes) == both


@pytest.mark.parametrize(("engine", "both"), [(openvino, False), (onnxruntime, True), (tensorrt, False)])
def test_both_branches_of_a_bare_sum(engine, both):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x):
            x = self.a(x)
            return self.c(x + self.b(x))

    made = plan(capture(Bare().eval(), (torch.zeros(1, 4, 4, 4),)), int8_static().quantize, engine.policy())
    assert ("conv2d_1" in {s.node for s in made.activations()}) == both


def test_pool_shares_its_inputs_parameters(network):
    made = plan(network, int8_static().quantize, openvino.policy())
    groups = {s.node: s.group for s in made.activations()}
    assert "max_pool2d" not in groups or groups["max_pool2d"] == groups["relu_1"]
    pool = next(layer for layer in made.layers if layer.op == "max_pool2d")
    assert pool.planned == "int8"


def test_concatenated_inputs_share_parameters():
    class Join(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.c(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1))

    made = plan(capture(Join().eval(), (torch.zeros(1, 2, 4, 4),)), int8_static().quantize, openvino.policy())
    groups = {s.node: s.group for s in made.activations()}
    assert groups["relu"] == groups["relu_1"] != groups["x"]


def test_sums_that_a_layernorm_reads_stay_float():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x):
            return self.g(self.norm(x + self.f(x)))

    made = plan(capture(Block().eval(), (torch.zeros(1, 3, 4),)), int8_static().quantize, openvino.policy())
    assert {layer.op: layer.planned for layer in made.layers}["add"] == "fp32"


def test_rules_keep_by_name_and_later_rules_win(network):
    per_tensor = Quantization(granularity="tensor")
    rules = (Rule(layer="*", weights=per_tensor), Rule(layer="head", keep="fp16"), Rule(op="add", keep="fp32"))
    made = plan(network, Recipe(rules=rules).quantize, openvino.policy())
    assert {s.name: s.spec.granularity.kind for s in made.weights()} == {"stem": "tensor", "body.0": "tensor"}
    layers = {layer.name: layer for layer in made.layers}
    assert (layers["head"].planned, layers["head"].weight_format) == ("fp32", "fp16"), "stored in FP16"
    assert layers["add"].planned == "fp32"


def test_a_rule_that_matches_nothing_names_the_nearest(network):
    with pytest.raises(RecipeError, match=r"nearest names: .*head"):
        plan(network, Recipe(rules=(Rule(layer="haed", keep="fp32"),)).quantize, openvino.policy())


def test_an_engine_refuses_what_it_cannot_express(network):
    with pytest.raises(RecipeError, match=r"stem: openvino cannot run int4 weights.*torch"):
        plan(network, Recipe(weights=Quantization(format="int4")).quantize, openvino.policy())
