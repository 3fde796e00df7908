"""A new solver, observer or pruner costs one entry in its table: a toy in each runs from a recipe to the result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import transformers
from torch import nn

import tersor
from tersor.checkpoints.hf_folder import HfFolder
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.errors import CalibrationError, RecipeError
from tersor.numerics import QuantSpec
from tersor.observers import OBSERVERS, Statistics
from tersor.pipeline.modules.loops import prune_iteratively
from tersor.recipe import Quantization, Recipe, Rule
from tersor.solvers import PRUNERS, SOLVERS, LayerProblem, LayerSolution, PrunedLayer, Rtn, Sparsity, curve

FLOAT = Quantization(format="fp32")


@dataclass(frozen=True)
class Halved:
    """Rounds the weight times ``factor``: it can be recognised by its values."""

    factor: float = 0.5
    seed: int = 0
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        solution = Rtn("minmax")(replace(problem, weight=problem.weight * self.factor))
        return replace(solution, method=f"halved {self.factor:g}, seed {self.seed}")

    def curve(self, problem: LayerProblem, levels: Sequence[str]) -> list[tuple[int, float]]:
        return curve(self, problem, levels)


@dataclass(frozen=True)
class Fed(Halved):
    """The same with data."""

    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def __call__(self, problem: LayerProblem) -> LayerSolution:
        problem.require(self.needs)
        assert problem.gram.shape[1:] == (problem.weight[0].numel(),) * 2
        return super().__call__(problem)


@dataclass(frozen=True)
class Fixed:
    """Always the same range."""

    high: float = 3.0
    order_dependent = False

    def range(self, statistics: Statistics, spec: QuantSpec) -> tuple[float, float]:
        return -self.high, self.high


@dataclass(frozen=True)
class Leftmost:
    """Removes the first columns."""

    shift: int = 0
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, problem: LayerProblem, sparsity: Sparsity) -> PrunedLayer:
        weight = problem.weight.detach().clone()
        weight.flatten(1)[:, self.shift : self.shift + round(sparsity.share * weight[0].numel())] = 0
        return PrunedLayer(weight, f"leftmost {self.shift}", None)

    def curve(self, problem: LayerProblem, shares: Sequence[float]) -> list[tuple[int, float]]:
        return [(problem.weight.numel() - round(s * problem.weight.numel()), s) for s in shares]


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setitem(SOLVERS, "halved", Halved)
    monkeypatch.setitem(SOLVERS, "fed", Fed)
    monkeypatch.setitem(OBSERVERS, "fixed", Fixed())
    monkeypatch.setitem(PRUNERS, "leftmost", Leftmost)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compressed(recipe):
    task = tersor.Task("toy", net(), (torch.zeros(1, 16),), lambda: [(drawn(32, 16),)])
    return tersor.compress(task, recipe, "torch", report=False, progress=False)


def of_weights(solver, **more):
    weights = Quantization(format="int8", granularity="channel", solver=solver)
    return Recipe(name="toy", weights=weights, activations=FLOAT, bias_correction=False, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=48, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


TOKENS = torch.randint(3, 48, (4, 16), generator=torch.Generator().manual_seed(1))
ASKED = [("halved", 0.5), ({"halved": {"factor": 0.25}}, 0.25), ("fed", 0.5)]


@pytest.mark.parametrize(("solver", "factor"), ASKED, ids=str)
def test_a_solver_in_a_graph(solver, factor):
    done = compressed(of_weights(solver))
    x, exact = drawn(8, 16, seed=3), net()
    with torch.no_grad():
        for layer in (exact[0], exact[2]):
            layer.weight.mul_(factor)
        assert (done(x) - exact(x)).abs().max() < 0.02 * exact(x).abs().max()


@pytest.mark.parametrize(("solver", "factor"), ASKED, ids=str)
def test_a_solver_in_a_folder(solver, factor, folder, tmp_path):
    recipe = of_weights(solver, seed=5)
    report = tersor.compress_folder(folder, tmp_path / "out", recipe, TOKENS, progress=False)
    name = "model.layers.0.mlp.up_proj"
    found, weight = (f.tensor(f"{name}.weight") for f in (QuantizedFolder(tmp_path / "out"), HfFolder(folder)))
    assert torch.allclose(found.float(), factor * weight.float(), atol=0.01 * float(weight.abs().max()))
    line = next(w for w in report.weights if w.name == name)
    assert line.method == f"halved {factor:g}, seed 5"


def test_a_solver_in_modules():
    small = tersor.quantize_dynamic(net(), of_weights({"halved": {"factor": 0.25}}), progress=False)
    x, exact = drawn(8, 16, seed=3), net()
    with torch.no_grad():
        for layer in (exact[0], exact[2]):
            layer.weight.mul_(0.25)
        assert (small(x) - exact(x)).abs().max() < 0.02 * exact(x).abs().max()


def test_a_solver_by_rule_and_without_its_data(folder, tmp_path):
    with pytest.raises(RecipeError, match=r"^0: fed solves a weight against calibrated inputs"):
        tersor.quantize_dynamic(net(), of_weights("fed"), progress=False)
    with pytest.raises(RecipeError, match="asks for calibration text"):
        tersor.compress_folder(folder, tmp_path / "out", of_weights("fed"), progress=False)
    with pytest.raises(CalibrationError, match="has seen no data"):
        tersor.convert(tersor.prepare(net(), of_weights("fed"), (torch.zeros(1, 16),), engine="torch"))
    rule = Rule(layer="2", weights=Quantization(format="int8", granularity="channel", solver="halved"))
    recipe = of_weights("rtn").model_copy(update={"rules": (rule,)})
    assert [s.solver for s in compressed(recipe).plan.weights()] == ["rtn", "halved"]


@pytest.mark.parametrize(("range", "high"), [("fixed", 3.0), ({"fixed": {"high": 1.0}}, 1.0)], ids=str)
def test_an_observer(range, high):
    done = compressed(Recipe(activations=Quantization(format="int8", range=range), bias_correction=False))
    sites = [s for s in done.plan.activations() if s.range == "fixed"]
    assert sites
    x = drawn(8, 16, seed=3)
    # What lies beyond the range is cut off; the first value may be widened by up to two steps.
    assert torch.allclose(done(100 * x.sign()), done((high + 2 * high / 127) * x.sign()), atol=1e-5)
    assert not torch.allclose(done(0.5 * high * x.sign()), done(high * x.sign()), atol=1e-3)


@pytest.mark.parametrize(("pruner", "shift"), [("leftmost", 0), ({"leftmost": {"shift": 4}}, 4)], ids=str)
def test_a_pruner_in_a_folder(pruner, shift, folder, tmp_path):
    recipe = Recipe(name="toy", weights=FLOAT, activations=FLOAT, sparsity="50%", pruner=pruner)
    report = tersor.compress_folder(folder, tmp_path / "out", recipe, TOKENS, progress=False)
    name = "model.layers.0.mlp.up_proj"
    zeros = HfFolder(tmp_path / "out").tensor(f"{name}.weight") == 0
    assert zeros[:, shift : shift + 16].all()
    assert zeros.float().mean() == 0.5
    assert next(w for w in report.weights if w.name == name).method == f"leftmost {shift} 50%"


def test_a_pruner_in_modules():
    done = prune_iteratively(net(), [(drawn(32, 16),)], "50% per row", "leftmost")
    assert (done.model[0].weight[:, :8] == 0).all()
    assert done.layers[0].method == "leftmost 0"


def test_what_is_not_in_one_sweep_is_refused(folder, tmp_path):
    recipe = of_weights("halved", sparsity="50%", pruner="leftmost")
    with pytest.raises(RecipeError, match=r"q_proj: sparse and quantized at once are .*not leftmost and halved"):
        tersor.compress_folder(folder, tmp_path / "out", recipe, TOKENS, progress=False)
