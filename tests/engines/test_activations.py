"""Every activation function compiles between quantized layers, in every engine that runs here."""

import pytest
import torch
import torch.nn.functional as F
from parts import Lambda, distance
from torch import nn

import tersor

FUNCTIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "clamp": lambda x: x.clamp(-1, 2),
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu of tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": F.elu,
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.2)),
    "mish": F.mish,
    "softplus": F.softplus,
    "selu": F.selu,
    "celu": F.celu,
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "exp": torch.exp,
    "hardshrink": F.hardshrink,
    "tanhshrink": F.tanhshrink,
    "square": lambda x: x * x,
    "softmax": lambda x: x.softmax(1),
}
LAYERS = {
    "linear": (lambda n, m: nn.Linear(n, m), (16,)),
    "convolution": (lambda n, m: nn.Conv2d(n, m, 1), (16, 4, 4)),
}
QUICK = ("mish",)


def _built(between, *layers):
    parts = {f"layer{k}": layer for k, layer in enumerate(layers)}
    torch.manual_seed(0)
    return Lambda(lambda m, x: m.layer1(between(m.layer0(x))), **parts).eval()


def _check(model, shape, engine):
    x = torch.randn(32, *shape, generator=torch.Generator().manual_seed(0))
    task = tersor.Task("activation", model, (x[:1],), lambda: [(x,)])
    done = tersor.compress(task, engine=engine, threads=1, report=False, progress=False)
    for part in (x, x[:1]):
        with torch.no_grad():
            assert distance(done(part), model(part)) < 0.1
        assert distance(done(part), done.network(part)) < 0.02


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", ["linear", pytest.param("convolution", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FUNCTIONS])
def test_it_compiles_between_layers(name, kind, engine):
    layer, shape = LAYERS[kind]
    _check(_built(FUNCTIONS[name], layer(16, 24), layer(24, 4)), shape, engine)


@pytest.mark.slow
@pytest.mark.parametrize("first", [nn.LayerNorm(16), nn.Identity(), nn.Sequential(nn.Linear(16, 16), nn.Mish())])
def test_mish_wherever_it_stands(first):
    _check(_built(F.mish, first, nn.Linear(16, 4)), (16,), "openvino")


def test_mish_of_large_values_is_exact():
    model = nn.Mish().eval()
    x = torch.linspace(-60, 60, 400)[None]
    task = tersor.Task("mish", nn.Sequential(nn.Linear(400, 400), model).eval(), (x,), lambda: [(x,)])
    with torch.no_grad():
        task.model[0].weight.copy_(torch.eye(400))
        task.model[0].bias.zero_()
    done = tersor.compress(task, "fp16", "openvino", threads=1, report=False, progress=False)
    torch.testing.assert_close(done(x), model(x), rtol=1e-5, atol=1e-6)
