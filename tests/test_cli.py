"""The command line on the embedded example and on bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from tersor.checkpoints.layouts import LAYOUTS
from tersor.cli import app, load_task
from tersor.engines import ENGINES
from tersor.errors import CalibrationError, EngineError, SavedFolderError, TaskError, TersorError
from tersor.recipe import PRESETS

TASK = """
import torch, tersor
from torch import nn

def task():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    data = [(torch.randn(8, 1, 8, 8),)]
    return tersor.Task("tiny", net, (torch.zeros(1, 1, 8, 8),), lambda: data)

other = task
"""


@pytest.fixture
def task_file(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(TASK)
    return path


def _run(*words):
    return CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)


def test_inspect_runs_no_data(task_file):
    said = _run("inspect", task_file)
    assert said.exit_code == 0
    assert "int8" in said.output
    assert "smaller (predicted)" in said.output


@pytest.mark.slow
def test_a_plan_for_another_target(task_file, tmp_path, cpu):
    cpu("avx2")
    words = ("--engine", "torch", "--target", "x86-vnni")
    assert _run("inspect", task_file, *words).exit_code == 0
    assert _run("compress", task_file, *words, "--out", tmp_path / "out").exit_code == 0
    said = json.loads((tmp_path / "out" / "report.json").read_text())
    assert said["environment"]["target"] == "x86-vnni"
    assert any("measured on x86-avx2" in w for w in said["warnings"])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["target"] == "x86-vnni"
    for command in ("inspect", "calibrate"):
        with pytest.raises(EngineError, match=r"no target 'x86'.*x86-vnni"):
            _run(command, task_file, "--target", "x86")


@pytest.mark.slow
def test_compress_report_run(task_file, tmp_path):
    out = tmp_path / "out"
    assert _run("compress", task_file, "--out", out).exit_code == 0
    assert (out / "report.html").is_file()
    assert (out / "report.json").is_file()
    assert "tiny" in _run("report", out).output
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8), np.float32))
    assert _run("run", out, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy").exit_code == 0
    assert np.load(tmp_path / "y.npy").shape == (2, 3)
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8)))
    with pytest.raises(TaskError, match=r"float32.*float64"):
        _run("run", out, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")


def test_calibrate_compares_and_draws(task_file):
    said = _run("calibrate", task_file, "--compare", "--site", "input").output
    assert all(name in said for name in ("minmax", "kl", "admm", "█", "only 8 calibration samples"))


@pytest.mark.parametrize(("recipe", "why"), [("int8-dynamic", "at run time"), ("int8-weight", "stay in float")])
def test_calibrate_says_that_a_recipe_calibrates_nothing(task_file, recipe, why):
    for more in ((), ("--compare",)):
        said = " ".join(_run("calibrate", task_file, "--recipe", recipe, *more).output.split())
        assert f"the recipe {recipe} calibrates no activations" in said
        assert why in said
        assert "estimator" not in said
        assert "adequate" not in said
    with pytest.raises(CalibrationError, match="calibrates no activations"):
        _run("calibrate", task_file, "--recipe", recipe, "--site", "input")


def test_outliers_are_listed_drawn_and_written(task_file, tmp_path):
    said = _run("outliers", task_file, "--out", tmp_path / "page.html", "--samples", "4")
    assert "no outliers in 2 of 2 layers" in said.output
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<svg ") == 2
    found = json.loads(_run("outliers", task_file, "--layer", "3", "--json").output)
    assert [layer["name"] for layer in found["layers"]] == ["3"]
    assert found["samples"] == 8


def test_sensitivities_are_listed_drawn_and_written(task_file, tmp_path):
    said = _run("sensitivity", task_file, "--out", tmp_path / "page.html", "--samples", "4", "--metric")
    assert "quantized, one kind after the other" in said.output
    assert "Open" in said.output
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<svg ") >= 3
    found = json.loads(_run("sensitivity", task_file, "--measured", "0", "--engine", "torch", "--json").output)
    assert {layer["divergence"] for layer in found["layers"]} == {None}
    assert found["metric"] is None
    assert found["whole"] > 0


def test_engines_says_what_the_cpu_means():
    said = _run("engines").output
    assert "openvino" in said
    assert "CPU:" in said


def test_another_function_of_the_file(task_file):
    assert load_task(type(task_file)(f"{task_file}:other")).name == "tiny"


def test_a_file_without_the_function(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(TaskError, match=r"no function task\(\)"):
        load_task(tmp_path / "empty.py")


def _command(*words):
    """The installed command in a process of its own: its exit code, and what a user sees of an error."""
    line = [sys.executable, "-m", "tersor.cli", *(str(w) for w in words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=900)


def test_an_error_is_one_message_and_exit_code_1(tmp_path):
    done = _command("compress", tmp_path / "nowhere.py", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: TaskError: there is no task file")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


HELP = """
import sys
from typer.testing import CliRunner
from tersor.cli import app
commands = [c.callback.__name__ for c in app.registered_commands]
for words in ([], ["--version"], ["--help"], *([c, "--help"] for c in commands)):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == (0 if words else 2) and done.output, (words, done.exception)
print(len(commands), *sys.modules)
"""


def test_help_and_version_import_the_command_line_alone():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    count, *modules = done.stdout.split()
    assert int(count) == len(app.registered_commands) > 10
    # Not pydantic: typer may read options with it.
    heavy = "torch numpy openvino onnx onnxruntime transformers scipy safetensors jinja2 yaml psutil jaxtyping"
    assert {m.partition(".")[0] for m in modules}.isdisjoint(heavy.split())
    # The table of engines is cheap to read.
    ours = {m for m in modules if m.startswith("tersor.") and not m.startswith(("tersor.cli.", "tersor.engines"))}
    cheap = "arguments cli errors inert packages process terminal words words.matching"
    assert ours == {f"tersor.{name}" for name in cheap.split()}


def test_help_prints_the_names_of_every_table():
    said = "".join(_run("compress", "--help").output.replace("│", "").split())
    for names in (PRESETS, ENGINES, LAYOUTS):
        assert ",".join(names) in said


def test_a_folder_that_exists_stops_before_any_work(task_file, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(SavedFolderError, match=r"exists: choose another folder.*--force"):
        _run("compress", task_file, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("inspect", "{task}", "--recipe", "int8-statik"), "did you mean 'int8-static'"),
        (("inspect", "{task}", "--engine", "openvina"), "no engine 'openvina'"),
        (("report", "{folder}"), "report"),
        (("run", "{folder}", "-i", "x.npy", "-o", "y.npy"), "manifest"),
        (("compress", "{folder}/storys", "--data", "t.txt", "-o", "{folder}/out"), "no task file .*storys;.*folder of"),
        (("inspect", "{folder}/config.json"), "config.json is not a Python file; .* not a file in it"),
        (("outliers", "{task}", "--layer", "nosuch"), "no layer matches 'nosuch'; nearest"),
        (("calibrate", "{task}", "--site", "nosuch"), "no site matches 'nosuch'; nearest"),
    ],
)
def test_bad_words_are_errors_of_ours(task_file, tmp_path, words, said):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TersorError, match=said):
        _run(*(w.format(task=task_file, folder=tmp_path) for w in words))


def test_a_recipe_file_with_rules(task_file, tmp_path):
    (tmp_path / "r.yaml").write_text("name: mine\nrules:\n- {layer: '3', keep: fp16}\n")
    said = _run("inspect", task_file, "--recipe", tmp_path / "r.yaml")
    assert "fp16" in said.output
    (tmp_path / "r.yaml").write_text("rules:\n- {layer: haed, keep: fp16}\n")
    with pytest.raises(TersorError, match="nearest names"):
        _run("inspect", task_file, "--recipe", tmp_path / "r.yaml")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "task.py").write_text(TASK)
    made = load_task(folder / "task.py")
    from tersor import compress

    return compress(made, engine="torch", report=False, progress=False).save(folder / "saved")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 1, 8, 8)), "is float32, the file holds float64"),
        (np.zeros((2, 8, 8), np.float32), r"has the shape \['batch', 1, 8, 8\], the file holds \[2, 8, 8\]"),
        (np.zeros((2, 3, 8, 8), np.float32), r"holds \[2, 3, 8, 8\]"),
        (np.array([{}], dtype=object), "cannot be read as a .npy file"),
    ],
)
def test_files_that_do_not_fit(saved, tmp_path, array, said):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(TaskError, match=said):
        _run("run", saved, "-i", tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    assert not (tmp_path / "y.npy").exists()


def test_as_many_files_as_inputs(saved, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8), np.float32))
    words = ("run", saved, "-i", tmp_path / "x.npy", "-i", tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    with pytest.raises(TaskError, match=r"has 1 inputs \(input_?\w*\), 2 files were given"):
        _run(*words)


def test_what_a_task_file_raises_is_not_hidden(tmp_path):
    (tmp_path / "broken.py").write_text("def task():\n    return None.nothing\n")
    said = r"task\(\) of .*broken.py raised AttributeError: .*nothing.* \(broken.py, line 2: return None.nothing\)"
    with pytest.raises(TaskError, match=said):
        load_task(tmp_path / "broken.py")
    (tmp_path / "broken.py").write_text("def task():\n    return 3\n")
    with pytest.raises(TaskError, match=r"returned a int, not a tersor\.Task"):
        load_task(tmp_path / "broken.py")


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (0, "no block was finished, so the same command starts from the beginning"),
        (1, "1 block is finished, and the same command resumes after it"),
        (2, "2 blocks are finished, and the same command resumes after them"),
    ],
)
def test_an_interrupted_run_says_what_resumes(tmp_path, monkeypatch, blocks, said):
    def stopped(*_, **__):
        (tmp_path / ".out.partial").mkdir()
        for k in range(blocks):
            (tmp_path / f".out.partial/block-{k:05d}.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("tersor.pipeline.folder.compress.compress_folder", stopped)
    done = _run("compress", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 130
    assert " ".join(done.stderr.split()) == f"interrupted; {said}"
