"""The gallery says of each preset what planning does with it, and what it prints reads back."""

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tersor import dynamic_plan
from tersor.cli import app
from tersor.engines import ENGINES
from tersor.errors import RecipeError, TersorError
from tersor.network.capture import capture
from tersor.network.sites import plan
from tersor.pipeline.folder.job import prepare_job
from tersor.pipeline.gallery import gallery
from tersor.pipeline.graph.host import GRAPH
from tersor.recipe import PRESETS, Recipe
from tersor.words import speaking
from tests.pipeline.tiny_folders import MODELS, written


def _run(*words):
    return CliRunner().invoke(app, ["recipes", *words], catch_exceptions=False)


def _taken(call, *arguments, **options):
    try:
        return bool(call(*arguments, **options) or True)
    except TersorError:
        return False


@pytest.mark.slow
def test_engines_and_modules_are_those_that_take_the_recipe():
    # Rules may name the first and the last layer, so there is one between.
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    network = capture(model, (torch.zeros(1, 64),))
    for shown in gallery():
        recipe = PRESETS[shown.name]()
        taken = [
            name
            for name, engine in ENGINES.items()
            if _taken(GRAPH.check, recipe)
            and _taken(plan, network, recipe.quantize, engine.policy("x86-vnni" if engine.targets else None))
        ]
        assert list(shown.engines) == taken, shown.name
        assert shown.modules == _taken(dynamic_plan, model, recipe), shown.name


@pytest.mark.slow
def test_folders_are_said_to_take_what_they_take(tmp_path):
    written(tmp_path, MODELS["llama"]())
    for shown in gallery():
        taken = _taken(prepare_job, tmp_path, shown.name, None, layout="compressed-tensors", needs=False)
        assert shown.folders == taken, shown.name


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_shown_reads_back(name, tmp_path):
    said = _run("show", name).output
    recipe = Recipe.from_yaml(said)
    assert recipe == PRESETS[name]()
    assert recipe.name == name
    assert recipe.description
    (tmp_path / "shared.yaml").write_text(said, encoding="utf-8")
    assert _run("show", str(tmp_path / "shared.yaml")).output == said
    assert Recipe.model_validate(json.loads(_run("show", name, "--json").output)) == recipe


def test_the_table_has_every_preset_with_its_name_unbroken(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = _run().output.splitlines()
    assert [name for line in lines if (name := line.partition(" ")[0]) in PRESETS] == list(PRESETS)
    assert [one["name"] for one in json.loads(_run("--json").output)] == list(PRESETS)
    with speaking("zh"):
        assert "校准" in _run().output


def test_a_description_is_kept_and_a_misspelt_preset_is_named():
    text = "name: mine\ndescription: 给 ResNet 的配方\nweights: {format: int4}\n"
    assert Recipe.from_yaml(text).description == "给 ResNet 的配方"
    assert "给 ResNet" in Recipe.from_yaml(text).to_yaml()
    assert "description" not in Recipe(name="mine").to_yaml()
    with pytest.raises(RecipeError, match="did you mean 'int4-gptq'"):
        _run("show", "int4-gpqt")
