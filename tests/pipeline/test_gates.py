"""Networks with zeros or fewer channels are timed beside the same without, and called faster by that alone."""

import pytest
import torch
from torch import nn

import tersor
from tersor.errors import EngineError
from tersor.measure.gates import sentences
from tersor.measure.latency import summarize
from tersor.pipeline.graph import measuring
from tersor.pipeline.graph.prepare import captured
from tersor.pipeline.graph.reporting import gates
from tersor.pipeline.graph.reporting.zeros import filled, pattern_of, share_of_zeros, weights_of
from tersor.recipe import Quantization, Recipe


def network(pattern="80%"):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=4), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 8),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for layer in (net[2], net[5], net[7]):
            w = layer.weight
            if pattern == "2:4":
                kept = (torch.rand(w.numel() // 4, 4).argsort(-1) < 2).reshape(w.shape)
                w.mul_(kept)
            elif pattern:
                w[torch.rand(w.shape) < 0.8] = 0
    return net


def task(net, count=None):
    data = [(torch.randn(8, 3, 16, 16),) for _ in range(3)]

    def calibration():
        for batch in data:
            if count is not None:
                count.append(1)
            yield batch

    return tersor.Task("gates", net, (torch.zeros(2, 3, 16, 16),), calibration)


def compressed(net, recipe="int8-static", engine="torch", report=False):
    return tersor.compress(task(net), recipe, engine, threads=1, report=report, progress=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reports without the figures that are of no matter here: memory takes a process of its own for each."""

    def unmeasured(*args, **options):
        raise EngineError("not measured in this test: leave it")

    real = measuring.interleave
    monkeypatch.setattr(measuring, "measure_memory", unmeasured)
    for module in (measuring, gates):
        monkeypatch.setattr(module, "interleave", lambda calls, **o: real(calls, rounds=3, min_time=0.001, settle=0))


RECIPES = {
    "int8": "int8-static",
    "int4 asymmetric": Recipe(weights=Quantization(format="int4", granularity="group:16", symmetric=False)),
    "uint8": Recipe(weights=Quantization(format="uint8", symmetric=False)),
    "fp16": "fp16",
    "float": Recipe(weights=Quantization(format="fp32"), activations=Quantization(format="fp32")),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("pattern", ["80%", "2:4"])
def test_other_values_take_the_place_of_zeros_and_of_nothing_else(name, pattern):
    net = network(pattern)
    made = compressed(net, RECIPES[name]).network
    before = {w.name: w for w in weights_of(made)}
    assert len(before) == 4
    assert share_of_zeros(list(before.values())) > (0.7 if pattern == "80%" else 0.4)
    floats = list(weights_of(captured(task(net))))
    assert pattern_of(floats, list(before.values())) == ("2:4" if pattern == "2:4" else "")
    assert pattern_of(list(weights_of(captured(task(network(""))))), list(before.values())) == ""
    values = {n: t.clone() for n, t in made.tensors()}
    twin = filled(made)
    assert all(torch.equal(t, values[n]) for n, t in made.tensors()), "the network itself is kept"
    for weight in weights_of(twin):
        old = before.pop(weight.name)
        assert weight.values.dtype == old.values.dtype
        assert not bool(weight.zeros.any())
        assert torch.equal(weight.values[~old.zeros], old.values[~old.zeros])
        new = weight.values[old.zeros]
        if not new.is_floating_point():
            assert bool(((new.int() - old.zero[old.zeros].int()).abs() == 1).all()), "the smallest other codes"
            low, high = (-127, 127) if name == "int8" else (0, 255) if name == "uint8" else (-8, 7)
            assert low <= int(new.min()) <= int(new.max()) <= high
        elif new.numel():
            assert float(new.abs().min()) > 1e-4, "no denormal numbers, which are slow"
    assert not before
    changed = {n for n, t in twin.tensors() if not torch.equal(t, values[n])}
    assert changed <= {w.name for w in weights_of(made)}


def test_a_dense_network_says_nothing_of_zeros():
    report = compressed(network(""), report=True).report
    assert (report.zeros, report.pairs, sentences(report)) == (None, (), [])


def test_rounding_alone_is_no_pruning():
    """A third of the codes of 2 bits are zero, of weights that were dense."""
    recipe = Recipe(weights=Quantization(format="int2"))
    done = compressed(network(""), recipe, report=True)
    assert share_of_zeros(list(weights_of(done.network))) > 0.2
    assert done.report.zeros is None


def test_zeros_are_counted_and_timed_in_an_engine():
    done = compressed(network(), engine="onnxruntime", report=True)
    report = done.report
    weights = [w.values for w in weights_of(done.network)]
    assert report.zeros.weights == sum(w.numel() for w in weights)
    assert report.zeros.zeros == sum(int((w == 0).sum()) for w in weights)
    assert report.zeros.bytes == report.compressed.bytes
    assert 0 < report.zeros.deflated < report.zeros.bytes
    (pair,) = report.pairs
    assert pair.without == "zeros"
    assert pair.spread[0] <= pair.speedup * 1.5
    (line,) = sentences(report)
    assert "ONNX Runtime multiplies zeros like any other weight" in line or "here than with other values" in line


def test_the_simulation_is_not_timed():
    report = compressed(network("2:4"), report=True).report
    assert report.pairs == ()
    assert report.zeros.pattern == "2:4"
    assert "not faster here: PyTorch multiplies zeros" in sentences(report)[0]


def pretended(monkeypatch, without, result):
    """Time passes as given, in ms: for the network without pruning, and for the result."""
    calls = {}

    def interleave(callables, **options):
        for name, call in callables.items():
            calls[name] = call()
        return {n: summarize([[ms * k] for k in (1.0, 1.01, 0.99)]) for n, ms in
                (("without", without), ("result", result))}  # fmt: skip

    monkeypatch.setattr(gates, "interleave", interleave)
    return calls


PRUNED = Recipe.from_yaml("steps:\n- prune: {target: 2x macs}\n- quantize: int8-static\n")


def test_removed_channels_are_timed_beside_the_same_recipe_without_it(monkeypatch):
    calls = pretended(monkeypatch, without=3.0, result=2.0)
    report = compressed(network(""), PRUNED, "onnxruntime", report=True).report
    (pair,) = report.pairs
    assert (pair.without, pair.speedup) == ("channels", pytest.approx(1.5))
    assert "Pruning alone makes it 1.5x faster here" in sentences(report)[0]
    assert calls["without"].shape == calls["result"].shape, "both ran"
    pretended(monkeypatch, without=2.0, result=2.0)
    report = compressed(network(""), PRUNED, "onnxruntime", report=True).report
    assert "Not called faster by pruning: no difference beyond the noise" in sentences(report)[0]


def test_the_other_network_is_whole_and_quantized_alike_from_one_batch(monkeypatch):
    found, kept = [], gates.unpruned

    def unpruned(given, recipe, subject):
        count = []
        found.append((kept(task(given.model, count), recipe, subject), subject, count))
        return found[-1][0]

    monkeypatch.setattr(gates, "unpruned", unpruned)
    pretended(monkeypatch, 1.0, 1.0)
    done = compressed(network(""), PRUNED, "onnxruntime", report=True)
    (twin, subject, count), = found
    whole = [w.shape for n, w in network("").named_parameters() if w.ndim > 1]
    assert [w.values.shape for w in weights_of(twin)] == whole
    assert [w.values.shape for w in weights_of(done.network)] != whole
    ops = [str(n.target) for n in twin.operators()]
    assert ops == [str(n.target) for n in done.network.operators()], "the same operators and quantizers"
    assert all(w.bits == 8 for w in weights_of(twin))
    assert 1 <= len(count) <= 2 * len(subject.details.prepared.plan.sites)


def test_a_network_that_cannot_be_made_leaves_the_report_and_no_claim(monkeypatch):
    def unpruned(*args):
        raise EngineError("out of luck: try again")

    monkeypatch.setattr(gates, "unpruned", unpruned)
    report = compressed(network(""), PRUNED, "onnxruntime", report=True).report
    assert report.pairs == ()
    assert sentences(report) == []
    assert any("pruning is not called faster" in w and "out of luck" in w for w in report.warnings)
