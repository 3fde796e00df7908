"""Outputs stay float, and no quantizer drowns a part of what it rounds."""

import pytest
import torch
from parts import Lambda, distance
from torch import nn

import tersor
from tersor.recipe import Recipe, Rule

RUN = ["openvino", "onnxruntime", "torch"]
QUICK = "onnxruntime"
AT_ONCE = ("a convolution",)


def compressed(model, shape, engine="torch", recipe="int8-static", scale=1.0):
    data = [(torch.randn(8, *shape, generator=torch.Generator().manual_seed(k)) * scale,) for k in range(3)]
    task = tersor.Task("placed", model.eval(), (data[0][0][:1],), lambda: data)
    return tersor.compress(task, recipe, engine, threads=1, report=False, progress=False), data[0][0]


def net(forward, **parts):
    torch.manual_seed(0)
    found = {"a": nn.Conv2d(3, 16, 3, padding=1), "b": nn.Conv2d(16, 16, 3, padding=1), "c": nn.Conv2d(16, 5, 1)}
    found |= parts
    for part in found.values():
        nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
    return Lambda(forward, **found)


OUTPUTS = {
    "a convolution": lambda m, x: m.c(m.a(x).relu()),
    "an activation": lambda m, x: m.c(m.a(x).relu()).relu(),
    "a mean": lambda m, x: m.b(m.a(x).relu()).relu().mean((2, 3)),
    "a sum": lambda m, x: m.a(x).relu() + m.b(m.a(x).relu()),
    "a product": lambda m, x: m.b(m.a(x).relu()) * m.a(x).relu(),
    "a join": lambda m, x: torch.cat([m.c(m.a(x).relu()), m.b(m.a(x).relu())], 1),
    "moved": lambda m, x: m.c(m.a(x).relu()).flatten(2).transpose(1, 2),
}


@pytest.mark.parametrize("engine", [e if e == QUICK else pytest.param(e, marks=pytest.mark.slow) for e in RUN])
@pytest.mark.parametrize("name", [n if n in AT_ONCE else pytest.param(n, marks=pytest.mark.slow) for n in OUTPUTS])
def test_what_only_the_caller_reads_is_not_rounded(name, engine):
    done, x = compressed(net(OUTPUTS[name]), (3, 8, 8), engine)
    found = done(x)
    # Values on a grid of 256 levels would be few.
    assert found.unique().numel() > min(300, 0.9 * found.numel())
    assert distance(found, done.network(x)) < 1e-2
    last = done.plan.layers[-1]
    assert engine != "onnxruntime" or last.planned in ("fp32", "fused")



UNLIKE = {
    "a mask": (lambda m, x: (m.c(m.a(x).relu()) + (x[:, :1] > 0) * -1e4).flatten(2).softmax(-1), "added to"),
    "a residual": (lambda m, x: m.c((m.a(x).relu() * 2000 + m.b(m.a(x).relu())) * 0.5), "added to"),
    "boxes and scores": (lambda m, x: torch.cat([m.c(m.a(x).relu()) * 1.0, m.large(x)], 1).sigmoid(), None),
    "joined": (lambda m, x: torch.cat([m.c(m.a(x).relu()), m.large(x)], 1).softmax(1), "joined with"),
    "stacked": (lambda m, x: torch.stack([m.b(m.a(x).relu()), m.large(x)], 1).exp(), "stacked with"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_unlike_operands_stay_float_and_the_plan_names_the_one_that_would_be_lost(name):
    form, verb = UNLIKE[name]
    model = net(form, large=nn.Conv2d(3, 16, 1))
    with torch.no_grad():
        model.large.weight.mul_(900)
    done, _ = compressed(model, (3, 8, 8), "onnxruntime")
    placed = [layer for layer in done.plan.layers if "would be lost" in layer.reason]
    assert bool(placed) == bool(verb)
    assert all(layer.planned == "fp32" and str(verb) in layer.reason for layer in placed)
    assert all(layer.name.startswith(("add", "cat", "stack")) for layer in placed)


@pytest.mark.parametrize("engine", RUN)
def test_channels_of_one_convolution_that_differ_by_orders_of_magnitude(engine):
    def forward(m, x):
        boxes, scores = m.both(m.a(x).relu()).split([4, 3], 1)
        return boxes.exp(), scores.sigmoid()

    model = net(forward, both=nn.Conv2d(16, 7, 1)).eval()
    with torch.no_grad():
        model.both.weight[4:].mul_(2e-3)
        model.both.bias[4:].zero_()
    done, x = compressed(model, (3, 8, 8), engine)
    with torch.no_grad():
        assert distance(done(x)[1] - 0.5, model(x)[1] - 0.5) < 0.1
    if engine == "onnxruntime":
        layer = next(layer for layer in done.plan.layers if layer.name == "both")
        assert "3 of its 7 channels would be lost" in layer.reason


@pytest.mark.parametrize("engine", RUN)
def test_a_small_part_survives_beside_a_large_one(engine):
    model = net(lambda m, x: x * 255 + m.a(x), a=nn.Conv2d(3, 3, 3, padding=1)).eval()
    done, x = compressed(model, (3, 8, 8), engine)
    with torch.no_grad():
        assert distance(done(x) - x * 255, model(x) - x * 255) < 0.05


def test_operands_alike_stay_in_integers():
    def forward(m, x):
        y = m.a(x).relu()
        y = y + m.b(y).relu()
        return m.c(torch.cat([y[:, :8], (y + m.b(y))[:, 8:]], 1))

    done, _ = compressed(net(forward), (3, 8, 8))
    sums = [layer for layer in done.plan.layers if layer.op == "add"]
    assert [layer.planned for layer in sums] == ["int8"] * len(sums)
    assert not [layer for layer in done.plan.layers if "would be lost" in layer.reason]


@pytest.mark.slow
@pytest.mark.parametrize("engine", RUN)
def test_a_sum_that_a_rule_keeps_reads_floats(engine):
    def forward(m, x):
        y = m.a(x).relu()
        return m.c((y + m.b(y)).relu())

    recipe = Recipe(name="kept", rules=(Rule(op="add", keep="fp32"),))
    done, x = compressed(net(forward), (3, 8, 8), engine, recipe)
    add = next(n for n in done.network.operators() if n.name == "add")
    assert not any("quantized" in source.name for source in add.all_input_nodes)
    assert distance(done(x), done.network(x)) < 1e-2
