"""engine="auto": the fastest faithful engine, and what is said of the others."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

import tersor
from tersor.engines import automatic
from tersor.engines import engine as find_engine
from tersor.errors import RecipeError
from tersor.measure import Latency
from tersor.pipeline.graph import auto, quantize
from tersor.pipeline.progress import Stages
from tersor.recipe import PRESETS, Quantization


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 10)).eval()
    batches = [(torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)]
    return tersor.Task("small", net, (torch.zeros(1, 3, 8, 8),), lambda: batches)

SYMMETRIC = Quantization(format="int8", granularity="token", symmetric=True, range="runtime")


def choose(task, recipe, candidates=None):
    return auto.choose_engine(task, PRESETS[recipe](), 1, "f32", Stages(False), candidates)


@pytest.mark.slow
def test_every_engine_is_measured_and_one_is_kept(task):
    found = choose(task, "int8-static")
    assert found.engine in automatic()
    assert all(f"{name} " in found.notes[0] for name in automatic())
    done = tersor.compress(task, engine="auto", report=False, progress=False)
    assert done.engine in automatic()


@pytest.mark.slow
def test_an_engine_that_refuses_is_named_with_its_reason(task):
    recipe = PRESETS["int8-dynamic"]().model_copy(update={"activations": SYMMETRIC})
    found = auto.choose_engine(task, recipe, 1, "f32", Stages(False))
    assert found.engine == "openvino"
    assert any("onnxruntime is excluded" in note and "at run time" in note for note in found.notes)
    with pytest.raises(RecipeError, match=r"no engine takes this recipe: .*onnxruntime is excluded"):
        auto.choose_engine(task, recipe, 1, "f32", Stages(False), ("onnxruntime",))


def tensors(network):
    return dict(network.tensors())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["int8-static", "int4-gptq"])
def test_the_data_is_read_once_and_the_winner_is_kept(task, recipe, monkeypatch):
    """Each candidate is captured, observed, solved and compiled once, and is what compress makes for that engine."""
    calls = Counter()

    def counted(name, module=auto, key=None):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, **k: calls.update([key or name]) or original(*a, **k)
        )

    for name in ("planned", "observe", "solve"):
        counted(name)
    for name in automatic():
        counted("compile", type(find_engine(name)), name)
    counted("captured", quantize)
    batches = list(task.calibration())
    reading = replace(task, calibration=lambda: calls.update(["pass"]) or batches)
    done = tersor.compress(reading, recipe, "auto", threads=1, report=False, progress=False)
    passes = 2 if recipe == "int4-gptq" else 1  # the Hessians have one of their own
    once = dict.fromkeys((*automatic(), "captured", "observe"), 1)
    assert calls == {**once, "planned": 2, "solve": 2, "pass": passes}
    alone = tersor.compress(task, recipe, done.engine, threads=1, report=False, progress=False)
    mine, other = tensors(done.network), tensors(alone.network)
    assert mine.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())
    assert done.plan == alone.plan


def test_networks_that_differ_after_rewrites_are_observed_apart(monkeypatch):
    """ONNX Runtime writes SiLU out, OpenVINO does not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 1)).eval()
    batches = [(torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(1)),)]
    silu = tersor.Task("silu", net, (torch.zeros(1, 3, 6, 6),), lambda: batches)
    hosts = {name: quantize.GraphHost(find_engine(name).policy()) for name in automatic()}
    seen, original = [], auto.observe
    monkeypatch.setattr(auto, "observe", lambda *a: seen.append(a[1]) or original(*a))
    recipe = PRESETS["int8-static"]()
    (step,) = recipe.steps
    subject = quantize.start(silu, recipe, auto.Candidates(hosts), Stages(False))
    found = step(subject, silu, Stages(False)).details
    assert len(seen) == 2
    for name, host in hosts.items():
        alone = host.quantize(step, subject, silu, Stages(False))
        assert all(torch.equal(a, tensors(alone.network)[n]) for n, a in tensors(found[name].network).items())


@pytest.mark.slow
def test_both_engines_quantize_at_run_time(task):
    found = choose(task, "int8-dynamic")
    assert len(found.notes) == 1, "nobody is out"


def test_an_engine_that_computes_something_else_is_out(task, monkeypatch):
    far = type("Far", (), {"integer": False, "to_simulation": 0.5, "to_float": 0.1})
    monkeypatch.setattr(auto, "check_numbers", lambda *a: far)
    with pytest.raises(RecipeError, match=r"0\.5000 from the simulation"):
        choose(task, "int8-static", ("openvino",))


def took(*rounds):
    return Latency(median=sorted(rounds)[len(rounds) // 2], p10=min(rounds), p90=max(rounds), rounds=rounds)


SMALL, LARGE = 1000, 2000
TIES = {
    "faster by far": ((1.0,), (1.2,), SMALL, 0.5, "a", "the fastest"),
    "within a tenth": ((1.0,), (1.09,), SMALL, 0.5, "b", "as fast as a and smaller"),
    "within a tenth and larger": ((1.0,), (1.09,), 3000, 0.01, "a", "as fast as b and smaller"),
    "slower, but not in every round": ((1.0, 1.0, 1.5), (1.3, 1.3, 1.3), SMALL, 0.5, "b", "as fast as a and smaller"),
    "slower in every round": ((1.0, 1.1, 1.05), (1.3, 1.4, 1.35), SMALL, 0.5, "a", "the fastest"),
    "as small": ((1.0,), (1.05,), 1990, 0.05, "b", "as fast as a and nearer to the float network"),
    "as small and further away": ((1.0,), (1.05,), 1990, 0.5, "a", "as fast as b and nearer to the float network"),
}


@pytest.mark.parametrize("case", TIES)
def test_of_engines_as_fast_as_each_other_the_smaller_file_wins(case):
    a, b, size, error, best, why = TIES[case]
    latencies = {"a": took(*a), "b": took(*b)}
    sizes, errors = {"a": LARGE, "b": size}, {"a": 0.1, "b": error}
    assert auto.preferred(latencies, sizes, errors) == (best, why)
    other = [dict(reversed(d.items())) for d in (latencies, sizes, errors)]
    assert auto.preferred(*other) == (best, why), "the order does not matter"


@pytest.mark.slow
def test_a_near_tie_of_real_engines_is_decided_by_the_files(task, monkeypatch):
    monkeypatch.setattr(auto, "interleave", lambda calls, **_: dict(zip(calls, (took(1.0), took(1.02)), strict=True)))
    found = choose(task, "int8-static")
    sizes = {}
    for name in automatic():
        done = tersor.compress(task, engine=name, report=False, progress=False)
        sizes[name] = auto._bytes(done.runner)
    assert found.engine == min(sizes, key=sizes.get)
    assert "as fast as" in found.notes[0]
    assert "smaller (" in found.notes[0]
