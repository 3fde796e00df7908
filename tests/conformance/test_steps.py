"""Every step in every host that declares it, and a toy step that one class and two entries bring in."""

from typing import Any, ClassVar

import pytest
import torch
from parts import task_of
from safetensors.torch import load_file
from torch import nn

import tersor
from tersor.errors import RecipeError
from tersor.pipeline.folder.host import FOLDER
from tersor.pipeline.graph.host import GRAPH
from tersor.pipeline.modules.host import MODULES
from tersor.recipe import STEPS, Recipe, Step
from tersor.recipe.steps import Phase
from tests.checkpoints.tiny_llama import tiny_llama

HOSTS = {"graph": GRAPH, "folder": FOLDER, "modules": MODULES}
RECIPES = {"graph": "int8-static", "folder": "int8-weight", "modules": "int8-dynamic"}


class Noted(Step):
    """Notes what it is given, and changes nothing."""

    name: ClassVar[str] = "noted"
    phase: ClassVar[Phase] = "any"
    met: ClassVar[list[tuple[Any, ...]]] = []

    mark: str = ""

    def __call__(self, subject: Any, task: Any, stages: Any) -> Any:
        with stages.stage("noted", "noting"):
            self.met.append((self.mark, subject.host.name, len(subject.history), subject.seed))
        return subject


@pytest.fixture
def noted(monkeypatch):
    monkeypatch.setitem(STEPS, "noted", Noted)
    for host in HOSTS.values():
        monkeypatch.setitem(host.takes, "noted", frozenset({"mark"}))
    Noted.met.clear()
    return Noted.met


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.fixture
def run(tmp_path):
    """Carry a recipe out in a host; a fingerprint of all that came of it."""

    def graph(recipe):
        done = tersor.compress(task_of(_net(), (16,)), recipe, "torch", report=False, progress=False)
        assert [step.name for step in done.subject.history] == ["quantize"]
        return dict(done.network.tensors())

    def folder(recipe):
        if not (source := tmp_path / "source").exists():
            tiny_llama().save_pretrained(source)
        done = tersor.compress_folder(source, tmp_path / recipe.name, recipe, progress=False)
        assert [step.name for step in done.subject.history] == ["quantize"]
        files = sorted(done.folder.glob("*.safetensors"))
        return {k: v for file in files for k, v in load_file(file).items()}

    def modules(recipe):
        return tersor.quantize_dynamic(_net(), recipe, progress=False).state_dict()

    return {"graph": graph, "folder": folder, "modules": modules}


@pytest.mark.parametrize("host", HOSTS)
def test_steps_are_carried_out_in_order_by_every_host(host, noted, run):
    preset = tersor.recipe.resolve(RECIPES[host])
    steps = [{"noted": {"mark": "before"}}, preset.quantize, {"noted": {"mark": "after"}}]
    found = run[host](Recipe(name="three", steps=steps, seed=5))
    name = HOSTS[host].host
    assert noted == [("before", name, 0, 5), ("after", name, 1, 5)]
    wanted = run[host](preset.model_copy(update={"seed": 5}))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("host", HOSTS)
def test_a_step_that_no_host_declares_is_refused_before_anything_runs(host, monkeypatch, run):
    monkeypatch.setitem(STEPS, "noted", Noted)
    with pytest.raises(RecipeError, match=r"`noted` of the recipe alone is not taken by .*, which takes `quantize`"):
        run[host](Recipe(name="alone", steps=[tersor.recipe.resolve(RECIPES[host]).quantize, {"noted": {}}]))


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_declared_by_a_host_and_reads_back(name):
    assert any(name in host.takes for host in HOSTS.values())
    step = STEPS[name]()
    assert step.name == name
    assert step.__doc__
    recipe = Recipe(steps=[step])
    assert Recipe.from_yaml(recipe.to_yaml()).steps == (step,)
    for host in HOSTS.values():
        assert host.takes.get(name, frozenset()) <= {*type(step).model_fields, "keep", "pruner"}
