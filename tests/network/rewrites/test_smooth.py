"""SmoothQuant keeps the function, is found in the graph, and helps where channels outlie."""

import pytest
import torch
from torch import nn

import tersor
from tersor.network.capture import capture
from tersor.network.network import op_name
from tersor.network.rewrites.smooth import Smooth, is_transformer, smoothable
from tersor.network.rewrites.smooth_alpha import products_error
from tersor.observers import observe

WIDTH = 32


class Block(nn.Module):
    """Two linear layers behind a LayerNorm, with outliers in channel 3 of what they read and of what lies between."""

    def __init__(self, shared: bool):
        super().__init__()
        torch.manual_seed(0)
        self.shared = shared
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.norm.weight.data[3] = 100
        self.up.weight.data[3] *= 60
        self.up.bias.data[3] = 50
        self.down.weight.data[:, 3] = 0
        self.down.weight.data[5, 3] = 1

    def forward(self, x):
        y = self.norm(x)
        return (y if self.shared else x) + self.down(torch.nn.functional.gelu(self.up(y)))


def inputs(seed=1):
    return torch.randn(64, 10, WIDTH, generator=torch.Generator().manual_seed(seed))


def statistics(network, x):
    from tersor.network.network import walk

    found = {}
    wanted = smoothable(network)

    def keep(node, value):
        if node.name in wanted:
            found[node.name] = observe(None, value, channel_axis=-1)

    walk(network, (x,), keep)
    return found


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_the_function_stays(shared, alpha):
    net, x = Block(shared).eval(), inputs()
    network = capture(net, (x[:2],))
    before = [t.clone() for _, t in network.tensors()]
    smooth = Smooth(alpha)(network, statistics(network, x))
    with torch.no_grad():
        exact = net(inputs(2))
    assert float((smooth(inputs(2)) - exact).norm() / exact.norm()) < 1e-5
    assert all(torch.equal(a, t) for a, (_, t) in zip(before, network.tensors(), strict=True)), "edited in place"


def test_a_norm_takes_the_scale_only_where_nobody_else_reads_it():
    x = inputs()
    multiplied = []
    for shared in (False, True):
        network = capture(Block(shared).eval(), (x[:2],))
        smooth = Smooth()(network, statistics(network, x))
        multiplied.append(sum(op_name(n) == "mul" for n in smooth.operators()))
    assert multiplied == [1, 2], "GELU's output always, the norm's where the sum reads it too"


def test_channels_become_alike():
    x = inputs()
    network = capture(Block(False).eval(), (x[:2],))
    smooth = Smooth(1.0)(network, statistics(network, x))
    for found in (s.channels for s in statistics(smooth, x).values()):
        sizes = torch.maximum(found.max.abs(), found.min.abs())
        assert sizes.max() / sizes.min() == pytest.approx(1, abs=1e-4)


def test_tied_weights_are_left_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(torch.relu(self.one(self.norm(x))))

    assert smoothable(capture(Tied().eval(), (torch.zeros(2, 8),))) == {}


def test_the_graph_tells_a_transformer():
    assert is_transformer(capture(Block(False).eval(), (torch.zeros(2, 4, WIDTH),)))
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    assert not is_transformer(capture(plain, (torch.zeros(2, 4),)))


def test_it_helps_where_channels_outlie_and_is_the_default():
    task = tersor.Task("block", Block(False).eval(), (torch.zeros(1, 10, WIDTH),), lambda: [(inputs(),)])
    with torch.no_grad():
        exact = task.model(inputs(2))
    errors = {}
    for smooth in ("auto", "on", "off"):
        recipe = tersor.recipe.int8_static().model_copy(update={"smooth": smooth})
        done = tersor.compress(task, recipe, "torch", report=False, progress=False)
        errors[smooth] = float((done.runner(inputs(2)) - exact).norm() / exact.norm())
    assert errors["auto"] == errors["on"]
    assert errors["auto"] < 0.8 * errors["off"]


def test_a_class_token_keeps_the_residual_stream_in_float():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.norm, self.head = Block(False), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

        def forward(self, x):
            return self.head(self.norm(self.block(x)[:, 0]))

    example = (torch.zeros(1, 10, WIDTH),)
    task = tersor.Task("classifier", Classifier().eval(), example, lambda: [(inputs(),)])
    done = tersor.compress(task, engine="torch", report=False, progress=False)
    assert {layer.planned for layer in done.plan.layers if layer.op == "add"} == {"fp32"}


@pytest.mark.parametrize("loud", [1.0, 30.0, 300.0])
def test_the_measured_strength_is_no_worse_than_any_other_and_than_none(loud):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(256, 48, generator=generator)
    rows[:, 5] *= loud
    layer = torch.nn.Linear(48, 32).eval()
    network = capture(layer, (torch.zeros(1, 48),))
    name = next(iter(smoothable(network)))
    seen = {name: observe(None, rows, channel_axis=-1, keep=256)}
    weight, ones = layer.weight.detach(), torch.ones(48)

    def error(alpha):
        found = Smooth(alpha)(network, seen).tensor("weight")
        return products_error(rows, [weight], found[0] / weight[0])

    none, *others = (products_error(rows, [weight], ones), *(error(a) for a in (0.3, 0.5, 0.7, 0.9)))
    # In front of the layer the value is only multiplied where that halves the error.
    assert error(None) <= min(others) * (1 + 1e-5) or (error(None) == none and min(others) > 0.4 * none)
    assert error(None) < 0.3 * none or loud < 100


def test_a_norm_is_scaled_for_any_gain():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 32)).eval()
    network = capture(model, (torch.zeros(1, 48),))
    name = next(iter(smoothable(network)))
    rows = nn.functional.layer_norm(torch.randn(256, 48), (48,)) * torch.linspace(1, 3, 48)
    seen = {name: observe(None, rows, channel_axis=-1, keep=256)}
    smoothed = Smooth(None)(network, seen)
    assert not torch.equal(smoothed.tensor("0.weight"), model[0].weight)
    assert len(smoothed.operators()) == len(network.operators()), "it costs nothing"
