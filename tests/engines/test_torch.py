"""The simulation takes every format, calls nothing integer, and leaves PyTorch as it was."""

import pytest
import torch
from parts import distance, task_of
from torch import nn

import tersor
from tersor.engines import simulation
from tersor.engines.torch.runner import FILES
from tersor.recipe import Quantization, Recipe


def _done(**changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(128, 4))
    task = task_of(model, (4, 8, 8))
    return task, tersor.compress(task, Recipe(**changes), "torch", report=False, progress=False)


def _error(task, done):
    x = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return distance(done(x), task.model(x))


@pytest.mark.exact_int8
# Each has a bound on both sides, so that no format passes for another; the other tensors have 16 bits.
@pytest.mark.parametrize(
    ("weights", "about"),
    [
        ({"format": "int8"}, 0.006),
        ({"format": "int16", "granularity": "tensor"}, 0.00008),
        ({"format": "int4", "granularity": "group:2"}, 0.11),
        ({"format": "int4", "granularity": "filters:4"}, 0.14),
        ({"format": "uint8", "symmetric": False}, 0.007),
        ({"format": "fp8_e4m3"}, 0.04),
        ({"format": "bf16"}, 0.003),
        ({"format": "ternary", "range": "mse"}, 0.6),
        ({"format": "int8", "rounding": "stochastic"}, 0.008),
    ],
)
def test_every_weight_format(weights, about):
    task, done = _done(weights=Quantization(**weights), activations=Quantization(format="int16"))
    assert 0.6 * about < _error(task, done) < 1.6 * about


@pytest.mark.parametrize(("name", "about"), [("int8", 0.02), ("int16", 0.00008), ("uint4", 0.32), ("fp8_e5m2", 0.1)])
def test_every_activation_format(name, about):
    task, done = _done(activations=Quantization(format=name), weights=Quantization(format="int16"))
    assert 0.6 * about < _error(task, done) < 1.6 * about


def test_it_says_that_it_simulates_and_keeps_the_callers_threads(tmp_path):
    _, done = _done()
    assert {e.precision for e in done.runner.executed()} == {"fp32"}
    assert all(e.note and "simulation" in e.note for e in done.runner.executed())
    before = torch.get_num_threads()
    runner = simulation().compile(done.network, threads=2)
    x = torch.randn(3, 4, 8, 8)
    out = runner(x)
    assert torch.get_num_threads() == before
    assert runner.save(tmp_path) == FILES
    torch.testing.assert_close(simulation().load(tmp_path, threads=2)(x), out, rtol=0, atol=0)
