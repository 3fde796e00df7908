"""GPTQ as a recipe asks for it: through capture, Hessians and the solver, into the network."""

import io

import pytest
import torch
from pretended import accelerator
from rich.console import Console
from torch import nn

import tersor
from tersor.errors import CalibrationError, EngineError, TaskError
from tersor.recipe import Quantization, Recipe
from tersor.report import print_report
from tersor.solvers import ask


class Shared(nn.Module):
    """Two layers of one input, a convolution in groups, an embedding, and a layer that is used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix = nn.Embedding(50, 24), nn.Linear(24, 24)
        self.q, self.k, self.twice = nn.Linear(24, 16), nn.Linear(24, 16), nn.Linear(16, 16)
        self.conv = nn.Conv1d(16, 8, 3, padding=1, groups=2)

    def forward(self, ids):
        x = self.mix(self.embed(ids))
        x = self.twice(self.twice(self.q(x) * self.k(x).sigmoid()).relu())
        return self.conv(x.transpose(1, 2))


def words(count, seed):
    return torch.randint(0, 12, (count, 10), generator=torch.Generator().manual_seed(seed))


def done(solver, bits="int3", batches=lambda: [(words(32, 0),), (words(32, 1),)], span="mse", **options):
    weights = Quantization(format=bits, granularity="channel", range=span, solver=solver)
    recipe = Recipe(weights=weights, activations=Quantization(format="fp32"), bias_correction=False)
    task = tersor.Task("shared", Shared().eval(), (words(1, 0),), batches)
    return tersor.compress(task, recipe, "torch", progress=False, **{"report": False, **options})


@pytest.mark.parametrize("float64", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_accelerator_finds_the_codes_of_the_cpu(float64, monkeypatch):
    solved = []

    def noted(problem, choice):
        solved.extend([] if problem.gram is None else [problem.weight.device.type])
        return ask(problem, choice)

    monkeypatch.setattr("tersor.pipeline.graph.solve.ask", noted)
    here = done("gptq", span="minmax")
    assert set(solved) == {"cpu"}
    solved.clear()
    with accelerator(float64) as device:
        there = done("gptq", span="minmax", device=device)
    assert set(solved) == {"privateuseone" if float64 else "cpu"}
    ours, theirs = (dict(result.network.tensors()) for result in (here, there))
    assert {t.device.type for t in theirs.values()} == {"cpu"}
    assert {name for name, t in ours.items() if not torch.equal(t, theirs[name])} == set()


class Filled(nn.Module):
    """What it adds has the size of the batch, so the graph makes it on the device that the capture ran on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 8)

    def forward(self, x):
        return self.second(self.first(x) + torch.full((x.shape[0], 12), 0.5, device=x.device))


def test_tensors_that_a_graph_makes_are_made_on_the_device():
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    task = tersor.Task("filled", Filled().eval(), (x[:1],), lambda: [(x,)])
    weights = Quantization(format="int4", granularity="channel", range="minmax", solver="gptq")
    recipe = Recipe(weights=weights, activations=Quantization(format="fp32"), bias_correction=False)
    here = tersor.compress(task, recipe, "torch", report=False, progress=False)
    with accelerator() as device:
        there = tersor.compress(task, recipe, "torch", report=False, progress=False, device=device)
    assert torch.equal(here(x), there(x))


@pytest.mark.slow
def test_the_report_names_the_device(quick_report):
    with accelerator() as device:
        report = done("gptq", span="minmax", device=device, report=True).report
    assert report.environment.device == "privateuseone"
    shown = Console(file=io.StringIO(), width=300)
    print_report(report, shown)
    assert "compressed on privateuseone" in shown.file.getvalue()


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(EngineError, match="there is no device cuda:9 here"):
        done("gptq", device="cuda:9")


@pytest.fixture(scope="module")
def solved():
    return done("gptq")


def test_the_output_is_nearer_than_with_weights_rounded_to_nearest(solved):
    exact, rounded, x = Shared().eval(), done("rtn"), words(64, 5)
    with torch.no_grad():
        ours, theirs = ((net.network(x) - exact(x)).square().sum() for net in (solved, rounded))
    assert ours < 0.6 * theirs


def test_what_gptq_cannot_solve_is_named(solved):
    sites = {s.name: s for s in solved.plan.weights()}
    assert sites["embed"].solver == "rtn"
    assert "no matrix product" in sites["embed"].reason
    assert {s.solver for s in sites.values() if s.name != "embed"} == {"gptq"}


def test_an_infinite_input_names_the_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    nn.init.constant_(model[0].weight, 3e38)
    task = tersor.Task("loud", model, (torch.ones(1, 4),), lambda: [(torch.ones(2, 4),)])
    weights = Quantization(format="int4", granularity="channel", solver="gptq")
    recipe = Recipe(weights=weights, activations=Quantization(format="fp32"), bias_correction=False)
    with pytest.raises(CalibrationError, match=r"^1: 8 of the layer's inputs are NaN or infinite"):
        tersor.compress(task, recipe, "torch", report=False, progress=False)


def test_prepared_for_gptq_it_wants_data():
    prepared = tersor.prepare(Shared().eval(), "int4-gptq", (words(1, 0),), engine="torch")
    with pytest.raises(CalibrationError, match="has seen no data, and the recipe int4-gptq needs some"):
        tersor.convert(prepared)


def test_padded_positions_count_for_no_matrix(tmp_path):
    from tersor.pipeline.modules.loops import prune_iteratively

    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.fc = nn.Embedding(10, 8), nn.Linear(8, 8)

        def forward(self, ids, mask):
            return self.fc(self.embed(ids)) * mask[..., None]

    torch.manual_seed(0)
    model = Embedded().eval()
    ids = torch.randint(1, 10, (16, 6))
    mask = torch.ones(16, 6, dtype=torch.bool)
    padded = torch.nn.functional.pad(ids, (0, 9)), torch.nn.functional.pad(mask, (0, 9))
    recipe = Recipe(
        name="gptq",
        weights=Quantization(format="int3", granularity="channel", solver="gptq"),
        activations=Quantization(format="fp32"),
        bias_correction=False,
    )

    def weights(batch, **more):
        free = {"ids": {1: "tokens"}, "mask": {1: "tokens"}}
        task = tersor.Task("padded", model, batch, lambda: [batch], dynamic=free, **more)
        done = tersor.compress(task, recipe, "torch", report=False, progress=False)
        with torch.no_grad():
            return done(ids, mask)

    plain, blind = weights((ids, mask)), weights(padded)
    masked = weights(padded, token_mask=lambda ids, mask: mask)
    assert torch.allclose(masked, plain, atol=1e-5)
    assert not torch.allclose(blind, plain, atol=1e-3)
    pruned = [
        prune_iteratively(model, [batch], "50%", "sparsegpt", token_mask=mask_of).model.fc.weight
        for batch, mask_of in (((ids, mask), None), (padded, lambda batch: batch[1]), (padded, None))
    ]
    assert torch.allclose(pruned[0], pruned[1], atol=1e-5)
    assert not torch.allclose(pruned[0], pruned[2], atol=1e-3)
    former = prune_iteratively(model, [padded], "50%", "sparsegpt", counted=lambda batch: batch[1])
    assert torch.equal(former.model.fc.weight, pruned[1])
    with pytest.raises(TaskError, match="prune_iteratively got `token_mask` and `counted`, its former name"):
        prune_iteratively(model, [padded], token_mask=None, counted=None)
