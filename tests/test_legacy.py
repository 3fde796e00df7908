"""What earlier versions wrote is read: folders give the same numbers, reports and recipes say what they said.

The data is written by ``scripts/write_legacy.py``, once for each version.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import tersor
from tersor.cli import app
from tersor.measure import read_report
from tersor.recipe import PRESETS

DATA = Path(__file__).parent / "data"
NETWORKS = sorted(p for p in DATA.glob("v*/networks/*") if p.is_dir())
LANGUAGE = sorted(p for p in DATA.glob("v*/language/*") if p.is_dir())
REPORTS = [p for p in NETWORKS + LANGUAGE if (p / "report.json").is_file()]
RECIPES = sorted([*DATA.glob("v*/recipes/*.yaml"), *DATA.glob("v*/*/*/recipe.yaml")])
FORMS = sorted({line for p in DATA.glob("v*/recipes/python_forms.txt") for line in p.read_text().splitlines()})
# Kernels of other engines, and of half precision, differ from CPU to CPU by a few codes.
SAME, NEAR = 1e-5, 0.02


def named(path):
    return path.relative_to(DATA).as_posix()


def expected(folder):
    tensors = load_file(folder.with_name(f"{folder.name}.expected.safetensors"))
    return tuple([t for name, t in sorted(tensors.items()) if name.startswith(kind)] for kind in ("input.", "output."))


def distance(found, wanted):
    """The relative root-mean-square distance of all outputs."""
    assert [x.shape for x in found] == [x.shape for x in wanted]
    ours, theirs = (torch.cat([x.double().flatten() for x in some]) for some in (found, wanted))
    return float((ours - theirs).norm() / theirs.norm())


def called(*words):
    return CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)


def test_there_is_something_to_read():
    assert len(NETWORKS) >= 16
    assert len(LANGUAGE) >= 7
    assert len(RECIPES) >= 40
    assert len(FORMS) >= 60


@pytest.mark.exact_int8
@pytest.mark.parametrize("folder", NETWORKS, ids=named)
def test_networks_give_the_same_numbers(folder):
    inputs, outputs = expected(folder)
    done = tersor.load(folder, threads=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert done.engine == manifest["engine"]
    assert [dict(entry) for entry in done.inputs] == manifest["inputs"]
    assert done.recipe == tersor.Recipe.from_yaml((folder / "recipe.yaml").read_text())
    assert (done.report is None) == (not (folder / "report.json").is_file())
    found = done(*inputs)
    found = (found,) if isinstance(found, torch.Tensor) else found
    assert distance(found, outputs) <= (SAME if done.engine == "torch" else NEAR)


@pytest.mark.parametrize("folder", LANGUAGE, ids=named)
def test_language_models_give_the_same_logits(folder):
    inputs, outputs = expected(folder)
    model = tersor.load(folder)
    with torch.no_grad():
        logits = model(*inputs).logits
    float32 = json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert distance([logits], outputs) <= (SAME if float32 else NEAR)
    with torch.no_grad():
        assert model.generate(inputs[0], max_new_tokens=2, do_sample=False).shape[1] == inputs[0].shape[1] + 2


@pytest.mark.parametrize("version", sorted(DATA.glob("v*/eager")), ids=named)
def test_the_state_of_an_eager_module_is_taken(version):
    inputs, outputs = expected(version / "dynamic")
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True)).eval()
    small = tersor.quantize_dynamic(model)
    small.load_state_dict(load_file(version / "dynamic.safetensors"))
    with torch.no_grad():
        assert distance([small(*inputs)[0]], outputs) <= NEAR


@pytest.mark.parametrize("folder", REPORTS, ids=named)
def test_reports_are_printed(folder):
    data = json.loads((folder / "report.json").read_text())
    said = called("report", folder)
    assert said.exit_code == 0
    assert data["recipe"] in said.output
    if folder in LANGUAGE:
        assert (data["compressed"] is None) == ("perplexity not measured" in said.output)
        assert data["weights"][0]["name"] in said.output
    else:
        # The words are those of this version, the figures those of the file.
        output = " ".join(said.output.split())
        smaller, *_, metric = data["headline"].split(" | ")[-1].split(", ")
        assert smaller in output
        assert metric in output
        assert data["engine"] != "torch" or not any(word in output for word in ("faster", "slower", "fell back"))


@pytest.mark.parametrize("folder", [p for p in REPORTS if p in NETWORKS], ids=named)
def test_reports_of_networks_are_values(folder):
    data = json.loads((folder / "report.json").read_text())
    found = read_report(folder)
    assert found == read_report(folder / "report.json")
    assert (found.task, found.recipe, found.engine) == (data["task"], data["recipe"], data["engine"])
    assert found.compressed.bytes == data["compressed"]["bytes"]
    assert found.compressed.metric == data["compressed"]["metric"]
    assert found.original.latency_ms.median == data["original"]["latency_ms"]["median"]
    assert [layer.name for layer in found.layers] == [layer["name"] for layer in data["layers"]]
    assert list(found.warnings) == data["warnings"]


@pytest.mark.parametrize("kind", [NETWORKS, LANGUAGE], ids=["networks", "language"])
def test_reports_are_compared(kind, tmp_path):
    folders = [p for p in kind if p in REPORTS]
    page = tmp_path / "page.html"
    assert called("compare", *folders, "--html", page).exit_code == 0
    assert all(p.name in page.read_text(encoding="utf8") for p in folders)


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_recipes_are_read_and_written(path):
    recipe = tersor.Recipe.from_yaml(path.read_text(encoding="utf8"), str(path))
    assert tersor.Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("form", FORMS)
def test_python_forms_are_taken(form):
    made = eval(form, {name: getattr(tersor, name) for name in ("Quantization", "Recipe", "Rule")})
    if isinstance(made, tersor.Recipe):
        assert tersor.Recipe.from_yaml(made.to_yaml()) == made


def test_presets_keep_their_names():
    names = {tersor.Recipe.from_yaml(p.read_text()).name for p in RECIPES if p.name.startswith("preset-")}
    assert len(names) == 12
    assert names <= set(PRESETS)
