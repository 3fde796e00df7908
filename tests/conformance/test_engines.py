"""Every engine in the table: the protocol, what it refuses, its files. A toy in the table runs everywhere."""

import dataclasses
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_engine import Toy
from typer.testing import CliRunner

import tersor
from tersor import Task
from tersor.cli import app
from tersor.engines import ENGINES, Engine, automatic, decoding, engine, simulation
from tersor.errors import EngineError
from tersor.measure import read_report, with_headline

MODEL = """
import torch, tersor
def task():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 3))
    data = [(torch.randn(8, 2, 6, 6),) for _ in range(2)]
    return tersor.Task("tiny", net.eval(), (torch.zeros(1, 2, 6, 6),), lambda: data)
"""


def _task() -> Task:
    scope: dict = {}
    exec(MODEL, scope)
    return scope["task"]()


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(ENGINES, "toy", Toy())
    return ENGINES["toy"]


@pytest.mark.parametrize("name", ENGINES)
def test_it_is_a_frozen_value_that_keeps_the_protocol(name):
    found = ENGINES[name]
    assert isinstance(found, Engine)
    assert found.name == name == found.policy().engine
    assert found == type(found)()
    assert hash(found) == hash(type(found)())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.name = "other"  # type: ignore[misc]
    assert found.install.startswith("pip install ")
    assert found.summary
    assert "\n" not in found.summary
    for library in found.libraries:
        importlib.import_module(library)


def test_a_class_without_one_member_is_no_engine():
    class Nearly(Toy):
        lower = property()  # type: ignore[assignment]

    assert isinstance(Toy(), Engine)
    assert not isinstance(Nearly(), Engine)


@pytest.mark.parametrize("name", ENGINES)
def test_saved_files_compute_what_the_runner_does(name, tmp_path):
    recipe = "int8-tensorrt" if name == "tensorrt" else "int8-static"
    done = tersor.compress(_task(), recipe, name, report=False, progress=False)
    assert done.engine == name
    done.save(tmp_path / "out")
    x = torch.randn(5, 2, 6, 6)
    again = tersor.load(tmp_path / "out")
    torch.testing.assert_close(again(x), done(x), rtol=0, atol=0)
    with pytest.raises(EngineError):
        ENGINES[name].load(tmp_path / "nowhere") if name != "torch" else engine("nowhere")


def test_one_simulates_and_one_takes_every_language_model():
    assert [e.name for e in ENGINES.values() if e.simulates] == [simulation().name]
    assert ENGINES[decoding()[-1]].runs_modules
    assert not any(ENGINES[name].simulates for name in automatic())


def test_the_table_is_read_without_a_heavy_import():
    package = Path(tersor.__file__).parent
    code = f"""
import sys, types
bare = types.ModuleType("tersor"); bare.__path__ = [{str(package)!r}]; sys.modules["tersor"] = bare
from tersor.engines import ENGINES, automatic, decoding
assert [e.summary for e in ENGINES.values()] and automatic() and decoding()
print([m for m in ("torch", "numpy", "openvino", "onnxruntime", "onnx", "pydantic") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("quick_report")
def test_a_toy_engine_runs_from_the_task_to_the_loaded_folder(toy, tmp_path):
    done = tersor.compress(_task(), engine="toy", progress=False)
    assert done.engine == "toy"
    assert done.report is not None
    assert "a toy ran this" in done.report.warnings
    assert {layer.note for layer in done.report.layers} == {"a toy says nothing"}
    done.save(tmp_path / "out")
    x = torch.randn(3, 2, 6, 6)
    assert torch.equal(tersor.load(tmp_path / "out")(x), done(x))
    prepared = tersor.prepare(_task().model, example=(torch.zeros(1, 2, 6, 6),), engine="toy")
    prepared(x)
    assert tersor.convert(prepared, progress=False).engine == "toy"


@pytest.mark.usefixtures("quick_report")
def test_auto_tries_a_cheap_toy(toy, monkeypatch):
    for name in [n for n in automatic() if n != "toy"]:
        monkeypatch.setitem(ENGINES, name, dataclasses.replace(ENGINES[name], cheap=False))  # type: ignore[type-var]
    assert tersor.compress(_task(), engine="auto", report=False, progress=False).engine == "toy"


@pytest.mark.slow
def test_the_commands_take_a_toy_and_name_it(toy, tmp_path):
    (tmp_path / "task.py").write_text(MODEL)
    run = CliRunner().invoke
    assert "an engine for this test" in run(app, ["engines"]).output
    words = ["inspect", str(tmp_path / "task.py"), "--engine", "toy"]
    assert run(app, words, catch_exceptions=False).exit_code == 0
    words = ["compress", str(tmp_path / "task.py"), "--engine", "toy", "-o", str(tmp_path / "out"), "--no-evaluate"]
    assert run(app, words, catch_exceptions=False).exit_code == 0
    assert read_report(tmp_path / "out").engine == "toy"


@pytest.mark.slow
def test_a_report_of_an_engine_that_is_gone_is_still_read(toy, tmp_path, monkeypatch):
    (tmp_path / "task.py").write_text(MODEL)
    run = CliRunner().invoke
    run(app, ["compress", str(tmp_path / "task.py"), "--engine", "toy", "-o", str(tmp_path / "out"), "--no-evaluate"])
    monkeypatch.delitem(ENGINES, "toy")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    for words in (["report", str(tmp_path / "out")], ["compare", str(tmp_path / "out"), str(tmp_path / "copy")]):
        said = run(app, words, catch_exceptions=False)
        assert said.exit_code == 0
        assert "toy" in said.output
    report = read_report(tmp_path / "out")
    slower = report.ratios.model_copy(update={"speedup": 0.5, "speedup_spread": (0.45, 0.55)})
    assert "slower" in str(with_headline(report.model_copy(update={"ratios": slower})).headline)
    with pytest.raises(EngineError, match="no engine 'toy'; there are"):
        tersor.load(tmp_path / "out")
