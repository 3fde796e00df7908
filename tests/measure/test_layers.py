"""The error of a layer alone, and what grew through the network."""

import pytest
import torch
from parts import task_of
from torch import nn

import tersor
from tersor.measure.fidelity import compare
from tersor.measure.layers import layer_noise
from tersor.network.capture import capture
from tersor.network.network import walk
from tersor.recipe import Quantization, Recipe

RECIPE = Recipe(weights=Quantization(format="int4"), bias_correction=False)


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.ZeroPad2d((1, 0, 1, 0)),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )
    task = task_of(nn.Sequential(*layers), (3, 8, 8))
    done = tersor.compress(task, RECIPE, "torch", report=False, progress=False)
    original = capture(task.model, task.example)
    x = torch.randn(10, 3, 8, 8)
    return original, done.network, x, layer_noise(original, done.network, (x,), {row.node for row in done.plan.layers})


def test_the_first_layer_has_no_more_error_than_its_own(measured):
    noise = measured[3]
    assert noise["conv2d"].local.db == pytest.approx(noise["conv2d"].accumulated.db)
    assert noise["conv2d_2"].local.db > noise["conv2d_2"].accumulated.db + 1


def test_accumulated_is_the_difference_of_two_whole_networks(measured):
    original, quantized, x, noise = measured
    assert noise["conv2d_2"].accumulated.db == pytest.approx(compare(original(x), quantized(x)).db, abs=1e-6)


def test_local_is_the_layer_with_exact_inputs(measured):
    """By hand: the exact input of the middle layer, quantized and padded, through its integer weight."""
    original, quantized, x, noise = measured
    exact: dict = {}
    walk(original, (x,), lambda node, value: exact.__setitem__(node.name, value))
    node = quantized.node("conv2d_1")
    quantizer = node.args[0].args[0]  # behind the padding
    weight = node.args[1]
    codes = torch.ops.tersor.dequantize(*(quantized.tensor(a) for a in weight.args[:3]), weight.args[3])
    scale, zero = (quantized.tensor(a) for a in quantizer.args[1:3])
    inputs = torch.ops.tersor.fake_quantize(exact["relu"], scale, zero, *quantizer.args[3:])
    value = nn.functional.conv2d(nn.functional.pad(inputs, (1, 0, 1, 0)), codes, quantized.tensor(node.args[2]))
    assert noise["conv2d_1"].local.db == pytest.approx(compare(exact["conv2d_1"], value).db, abs=1e-4)


def test_chunks_add_up(measured):
    original, quantized, x, noise = measured
    for chunk in (1, 3, 100):
        again = layer_noise(original, quantized, (x,), set(noise), chunk)
        for name, found in noise.items():
            assert again[name].local.db == pytest.approx(found.local.db, abs=1e-3)
