"""Bias correction gives every layer its mean back, and the network its accuracy."""

import pytest
import torch
from parts import Lambda, distance
from torch import nn
from torch.nn import functional as F

from tersor import Quantization, Recipe, Task, compress
from tersor.network.calibrate import channel_sum
from tersor.network.capture import capture
from tersor.network.network import walk
from tersor.network.rewrites.fold_batchnorm import FoldBatchNorm

WEIGHTS = Quantization(format="int4", granularity="tensor")


def _network(windows: bool) -> nn.Module:
    torch.manual_seed(0)
    if windows:
        # The linear layers read rows of 4 of a sample's 8 rows: two "windows" a sample.
        f = lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x.reshape(-1, 4, 6))))).reshape(x.shape[0], 8, 16))  # noqa: E731
        return Lambda(f, a=nn.Linear(6, 16), b=nn.Linear(16, 16, bias=False), c=nn.Linear(16, 3)).eval()
    layers = (nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 3, 1))
    return nn.Sequential(*layers).eval()


def _compressed(model, data, correct):
    recipe = Recipe(weights=WEIGHTS, bias_correction=correct, equalize="off", correction_samples=20)
    task = Task("t", model, (data[0][:1],), lambda: [(x,) for x in data])
    return compress(task, recipe, "torch", report=False, progress=False).network


@pytest.mark.parametrize("windows", [False, True])
def test_every_layer_has_the_mean_it_had(windows):
    model = _network(windows)
    # All positive: quantized weights then err in one direction, sample after sample.
    shape = (8, 6) if windows else (2, 9, 9)
    data = [torch.rand(12, *shape) for _ in range(3)]
    plain, corrected = (_compressed(model, data, c) for c in (False, True))
    x = torch.cat(data)[:20]
    exact = _means(FoldBatchNorm()(capture(model, (x[:1],))), x)
    found, before = _means(corrected, x), _means(plain, x)
    assert set(exact) <= set(found)
    for name, mean in exact.items():
        torch.testing.assert_close(found[name], mean, rtol=0, atol=1e-5)
    assert any(float((before[name] - exact[name]).abs().max()) > 1e-3 for name in exact)
    with torch.no_grad():
        x = torch.cat(data)
        assert distance(corrected(x), model(x)) < 0.9 * distance(plain(x), model(x))


def _means(network, x):
    layers = {n.name for n in network.operators() if n.name.startswith(("conv2d", "linear")) and "quant" not in n.name}
    found = {}

    def visit(node, value):
        if node.name in layers:
            total, count = channel_sum(node, value)
            found[node.name] = total / count

    walk(network, (x,), visit)
    return found
