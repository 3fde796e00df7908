"""Sensitivities are those of networks in which one operator is quantized, built by hand."""

import json

import pytest
import torch
from torch import nn

import tersor
from tersor import demo
from tersor.engines import engine
from tersor.errors import RecipeError
from tersor.measure.choosing.sensitivity import LayerCost, worth_keeping
from tersor.network.network import title, walk
from tersor.pipeline.graph.pruning.trials import divergence
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import through
from tersor.recipe import Recipe, Rule, resolve
from tersor.search.partly import Partly, parts_of, quantized_operators
from tersor.search.sensitivity import Sensitivity, sensitivity


class Block(nn.Module):
    """Attention by hand, a feed-forward pair and a join."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(32, 5)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        y = x + self.out((q @ k.transpose(1, 2) / 4).softmax(-1) @ v)
        z = y + self.down(nn.functional.gelu(self.up(y)))
        return self.head(torch.cat((y.mean(1), z.mean(1)), 1))


class Convolutions(nn.Module):
    """A padded, a grouped and a depthwise convolution, and a shortcut."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.c, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        y = self.a(nn.functional.pad(x, (1, 0, 1, 0))).relu()
        y = y + self.c(self.norm(self.b(y)).relu())
        return self.head(y.mean((2, 3)))


def made(name):
    torch.manual_seed(0)
    net, shape = {"block": (Block(), (6, 16)), "convolutions": (Convolutions(), (3, 9, 9))}[name]
    data = [(torch.randn(16, *shape, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    return tersor.Task(name, net.eval(), (torch.zeros(1, *shape),), lambda: data)


def solved(task, recipe="int8-static"):
    recipe = resolve(recipe)
    policy = engine("openvino").policy(None)
    with Stages(False) as stages:
        return through(recipe.steps, start(task, recipe, GraphHost(policy), stages), task, stages).details


@pytest.mark.parametrize("name", ["block", "convolutions"])
@pytest.mark.parametrize("recipe", ["int8-static", "int8-weight"])
def test_all_operators_are_the_quantized_network_and_none_the_float_one(name, recipe):
    task = made(name)
    found = solved(task, recipe)
    floats, quantized = found.prepared.network, found.network
    ((x,), *_) = task.calibration()
    names = {n.name for n in quantized_operators(floats, quantized)}
    assert names
    assert torch.allclose(Partly(floats, quantized, names)(x), quantized(x), atol=1e-5)
    assert torch.allclose(Partly(floats, quantized, ())(x), task.model(x), atol=1e-5)


@pytest.mark.parametrize("name", ["block", "convolutions"])
def test_a_layer_alone_costs_what_the_network_with_all_others_in_float_loses(name):
    task = made(name)
    found = sensitivity(task, samples=32, measured=100, progress=False)
    weighted = [layer for layer in found.layers if layer.op in ("linear", "conv2d")]
    assert len(weighted) >= 4
    ((x,), (y,)) = task.calibration()
    batch = torch.cat((x, y))
    base = solved(task, Recipe(bias_correction=False))
    for layer in weighted:
        (node,) = [n for n in quantized_operators(base.prepared.network, base.network) if title(n) == layer.name]
        out = Partly(base.prepared.network, base.network, {node.name})(batch)
        with torch.no_grad():
            assert layer.divergence == pytest.approx(divergence(task.model(batch), out) / 32, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("name", ["block", "convolutions"])
def test_estimates_rank_as_measurements_do(name):
    layers = sensitivity(made(name), samples=32, measured=100, progress=False).layers
    estimated, measured = (torch.tensor(x) for x in zip(*((c.estimate, c.divergence) for c in layers), strict=True))
    ranks = torch.stack((estimated.argsort().argsort(), measured.argsort().argsort())).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.7
    worst = int(measured.argmax())
    assert 1 / 4 < estimated[worst] / measured[worst] < 4


def test_a_layer_whose_input_has_outliers_is_found_and_worth_keeping(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with torch.no_grad():  # one hidden unit is 300 times as large as the others, and read by next to nothing
        net[0].weight[3] *= 300
        net[2].weight[:, 3] /= 300
    data = [(torch.randn(64, 16, generator=torch.Generator().manual_seed(1)),)]
    task = tersor.Task("outlier", net, (torch.zeros(1, 16),), lambda: data)
    found = sensitivity(task, progress=False)
    assert found.kept[0].name == "2"
    assert found.without < found.whole / 2
    rules = tuple(Rule(**rule) for rule in found.rules())
    kept = resolve("int8-static")
    again = sensitivity(task, kept.model_copy(update={"rules": (*kept.quantize.rules, *rules)}), progress=False)
    assert again.whole == pytest.approx(found.without, rel=0.5)
    page = found.to_html(tmp_path).read_text()
    assert "2" in page
    data = json.loads(found.to_json())
    assert data["rules"][0] == {"layer": "2", "keep": "fp32"}
    assert isinstance(found, Sensitivity)


def test_kinds_are_quantized_one_after_the_other_up_to_the_whole_network():
    task = demo.task()
    found = sensitivity(task, samples=16, measured=2, metric=True, progress=False)
    assert [s.kind for s in found.stages] == ["projection", "convolution", "other"]
    assert found.stages[-1].layers == len(found.layers)
    assert found.stages[-1].divergence == pytest.approx(found.whole, rel=1e-6)
    assert all(0.9 < s.metric <= 1 for s in found.stages)
    assert sum(layer.divergence is not None for layer in found.layers) == 2


def test_a_recipe_that_quantizes_nothing_is_refused():
    with pytest.raises(RecipeError, match="quantizes no operator of block"):
        sensitivity(made("block"), Recipe(weights={"format": "fp32"}, activations={"format": "fp32"}), progress=False)


def test_a_network_of_labels_is_refused_and_a_training_left_out():
    class Labels(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x).argmax(1)

    data = [(torch.randn(8, 4),)]
    task = tersor.Task("labels", Labels().eval(), (torch.zeros(1, 4),), lambda: data)
    with pytest.raises(RecipeError, match="let the model return scores"):
        sensitivity(task, progress=False)
    assert sensitivity(made("block"), "int8-qat", samples=4, measured=0, progress=False).layers


def test_few_layers_are_worth_keeping_and_never_all():
    def cost(name, value):
        return LayerCost(name, "linear", "ffn", "int8", 1, 30.0, value)

    assert worth_keeping([cost("a", 1.0), cost("b", 1.0)]) == []
    assert [c.name for c in worth_keeping([cost("a", 1.0), *(cost(str(k), 0.01) for k in range(9))])] == ["a"]
    assert worth_keeping([cost("a", 0.0)]) == []


def test_samples_run_a_few_at_a_time():
    task = made("block")
    network = solved(task).prepared.network
    parts = list(parts_of((torch.zeros(40, 6, 16),), network))
    assert [len(x) for (x,) in parts] == [16, 16, 8]
    assert walk(network, parts[2])[0].shape == (8, 5)
