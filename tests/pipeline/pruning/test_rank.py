"""The structure `rank`: two thinner layers for one, where that pays."""

import pytest
import torch
from torch import nn

import tersor
from tersor.errors import RecipeError
from tersor.pipeline.graph.pruning import step
from tersor.pipeline.graph.pruning.timed.stairs import Share
from tersor.report.text import text
from tests.pipeline.pruning.test_latency import MadeUp
from tests.pipeline.pruning.test_prune import run


def low(outputs, inputs, rank, seed):
    """A weight of nearly that rank."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, rank, generator=g) @ torch.randn(rank, inputs, generator=g) / inputs**0.5
    return weight + 0.01 * torch.randn(outputs, inputs, generator=g)


def task_of(kind="linear", bias=True):
    torch.manual_seed(0)
    if kind == "linear":
        net = nn.Sequential(nn.Linear(32, 48, bias=bias), nn.ReLU(), nn.Linear(48, 40, bias=bias)).eval()
        shape = (32,)
    else:
        net = nn.Sequential(
            nn.Conv2d(32, 48, 1, stride=2, bias=bias), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 40, 1, bias=bias)
        ).eval()
        shape = (32, 6, 6)
    with torch.no_grad():
        for k, layer in enumerate(m for m in net if hasattr(m, "weight") and m.weight.ndim > 1):
            layer.weight.copy_(low(*layer.weight.shape[:2], 4, k).reshape(layer.weight.shape))
    data = [(torch.randn(64, *shape, generator=torch.Generator().manual_seed(k)) + 1,) for k in range(4)]
    return tersor.Task(kind, net, (torch.zeros(2, *shape),), lambda: data)


@pytest.fixture
def rewards(monkeypatch):
    """An engine in which all that has fewer multiplications is faster."""
    monkeypatch.setattr(step, "Clock", type("Macs", (MadeUp,), {"tells": staticmethod(tersor_macs)}))


def tersor_macs(network):
    from tersor.network.groups import macs

    return float(macs(network))


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_low_rank_become_two_and_compute_the_same(kind, bias, rewards):
    task = task_of(kind, bias)
    done = run(task, target="2x macs", structure="rank")
    (record,) = done.prunings
    assert record.macs[1] <= record.macs[0] / 2
    assert all(w.after < w.before for w in record.ranks)
    assert record.faster == pytest.approx(record.macs[0] / record.macs[1])
    x = next(iter(task.calibration()))[0]
    with torch.no_grad():
        out = task.model(x)
    assert float((done(x) - out).square().mean() / out.var()) < 2e-3


def test_knowing_the_inputs_is_better_than_not(rewards):
    task = task_of()
    x = next(iter(task.calibration()))[0]
    scale = torch.logspace(-2, 1, 32)
    task = tersor.Task("scaled", task.model, task.example, lambda: [(x * scale,)])
    with torch.no_grad():
        out = task.model(x * scale)
    errors = {
        score: float((run(task, target="4x macs", structure="rank", score=score)(x * scale) - out).square().mean())
        for score in ("obs", "magnitude")
    }
    assert errors["obs"] < 0.5 * errors["magnitude"]


def test_where_the_engine_is_no_faster_nothing_is_done(monkeypatch):
    class Same(MadeUp):
        def __call__(self, networks, rounds=0, seconds=0.0):
            return [Share(1.0, 1.01) for _ in networks]

    monkeypatch.setattr(step, "Clock", Same)
    with pytest.raises(RecipeError, match="two thinner layers are no faster in the engine"):
        run(task_of(), target="2x macs", structure="rank")


def test_networks_without_such_layers_are_refused(rewards):
    net = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    task = tersor.Task("conv", net, (torch.zeros(2, 3, 8, 8),), lambda: [(torch.randn(4, 3, 8, 8),)])
    with pytest.raises(RecipeError, match="no linear layer or 1×1 convolution"):
        run(task, target="2x macs", structure="rank")


def test_the_report_tells_the_ranks(rewards, quick_report):
    done = run(task_of(), target="2x macs", structure="rank", report=True)
    (told,) = done.report.prunings
    assert [r.layers for r in told.ranks] == [("0",), ("2",)]
    assert "became two thinner ones" in text(done.report)
