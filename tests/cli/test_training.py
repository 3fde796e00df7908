"""`tersor finetune` and what other commands tell of recipes that train."""

import json

import pytest
import torch
from typer.testing import CliRunner

import tersor
from tersor.cli import app
from tersor.measure import read_report
from tersor.recipe import Recipe

TASK = """
import torch, tersor
from torch import nn

def task(train=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    data = [(torch.randn(8, 1, 8, 8),) for _ in range(2)]
    given = {"train": lambda: data} if train else {}
    return tersor.Task("tiny", net.eval(), (torch.zeros(1, 1, 8, 8),), lambda: data, **given)

def bare():
    return task(False)
"""


@pytest.fixture
def task(tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    return tmp_path / "task.py"


def ran(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)


def test_inspect_shows_the_steps_and_that_training_data_is_missing(task):
    words = ("-r", "int4-qat", "-e", "torch")
    told = " ".join(ran("inspect", task, *words).output.split())
    assert "steps: quantize → train (3 epochs, adamw, rate 0.0003, distilled by auto)" in told
    assert "no training data" not in told
    data = json.loads(ran("inspect", f"{task}:bare", *words, "--json").stdout)
    assert data["steps"] == ["quantize", "train"]
    assert data["notes"] == ["the task has no training data (Task.train), which the step `train` needs"]


def test_recipes_that_do_not_train_are_refused(task, tmp_path):
    found = ran("finetune", task, "-r", "int8-static", "-o", tmp_path / "out")
    assert found.exit_code == 1
    assert "has no step `train`" in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_the_list_of_recipes_tells_which_ones_train():
    found = {one["name"]: one for one in json.loads(ran("recipes", "--json").stdout)}
    assert [name for name, one in found.items() if one["trains"]] == [
        "int3-train", "int2-train", "int8-qat", "int4-qat", "int2-qat", "ternary", "binary", "distill",
    ]  # fmt: skip


@pytest.mark.slow
def test_finetune_writes_a_folder_that_opens_and_goes_on_from_its_state(task, tmp_path):
    words = ("-r", "int4-qat", "-e", "torch", "--threads", 1, "--folder", tmp_path / "state")
    first = ran("finetune", task, *words, "--epochs", 2, "-o", tmp_path / "one", "--json")
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)["report"]
    assert [epoch["number"] for epoch in report["trainings"][0]["epochs"]] == [1, 2]
    assert report["trainings"][0]["held_out"] == "the difference from the teacher on the calibration data"
    # Everything was trained already: the second run reads the state, with the very times of the first.
    assert ran("finetune", task, *words, "--epochs", 2, "-o", tmp_path / "two").exit_code == 0
    again = read_report(tmp_path / "two")
    assert again.trainings == read_report(tmp_path / "one").trainings
    done, other = tersor.load(tmp_path / "one"), tersor.load(tmp_path / "two")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(done(x), other(x))
    recipe = Recipe.from_yaml((tmp_path / "one" / "recipe.yaml").read_text())
    assert [step.name for step in recipe.steps] == ["quantize", "train"]
    assert recipe.steps[1].model_dump()["epochs"] == 2
    shown = ran("report", tmp_path / "one", "--lang", "zh").output
    assert "留出损失" in shown
    compared = ran("compare", tmp_path / "one", tmp_path / "two", "--html", tmp_path / "page.html")
    assert "epochs trained" in compared.output
