"""The step `prune` on networks whose channels are shuffled, packed or computed: cut, repaired, quantized, compiled."""

import pytest
import torch

import tersor
from tersor.network.network import op_name
from tersor.recipe import Prune, Quantize, Recipe
from tests.network.groups.odd import made

FLOAT = {"weights": {"format": "fp32"}, "activations": {"format": "fp32"}, "bias_correction": False}


def run(name, engine="torch", quantize=FLOAT, **step):
    net, (example,) = made(name)
    data = [(torch.randn(16, *example.shape[1:], generator=torch.Generator().manual_seed(k)),) for k in range(4)]
    task = tersor.Task(name, net, (example,), lambda: data)
    recipe = Recipe(steps=(Prune(**step), Quantize(**quantize)), name="pruned")
    return net, data[0][0], tersor.compress(task, recipe, engine, report=False, progress=False, threads=1)


@pytest.mark.parametrize("name", ["shuffles", "transformer", "decoder", "weight-norm", "unfolded", "cosine"])
def test_repair_makes_up_for_what_went(name):
    errors = {}
    for repair in ("none", "ridge"):
        net, x, done = run(name, target="1.5x macs", repair=repair, rounds=2, score="fisher")
        (record,) = done.prunings
        assert record.macs[1] <= record.macs[0] / 1.5
        with torch.no_grad():
            wanted = net(x)
        errors[repair] = float((done(x) - wanted).square().mean())
    assert errors["ridge"] < errors["none"]


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_cut_shuffle_is_compiled_in_int8(engine):
    _, x, done = run("shuffles", engine, {}, target="1.4x macs", rounds=1)
    assert "index_select" in {op_name(n) for n in done.network.operators()}
    assert torch.isfinite(torch.as_tensor(done(x))).all()
