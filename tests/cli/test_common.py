"""The options that every command takes: --json, --quiet, --lang, --debug, --wide; and a Tersor without PyTorch."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest
from sample_report import layers, resnet20
from typer.main import get_command
from typer.testing import CliRunner

from tersor.cli import app
from tersor.cli.common import Chosen, console

TASK = """
import torch, tersor
from torch import nn

def task():
    print("what a task prints")
    torch.manual_seed(0)
    net = nn.Sequential()
    name = "a_block_whose_name_is_longer_than_many_terminals_are_wide"
    net.add_module(name, nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()))
    net.add_module("head", nn.Conv2d(4, 4, 3))
    data = [(torch.randn(8, 1, 8, 8),)]
    return tersor.Task("tiny", net.eval(), (torch.zeros(1, 1, 8, 8),), lambda: data)
"""
LONG = "a_block_whose_name_is_longer_than_many_terminals_are_wide"


@pytest.fixture
def task_file(tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    return tmp_path / "task.py"


@pytest.fixture
def folder(tmp_path):
    rows = [dict(row, name=f"{row['name']}.{LONG}") for row in layers()]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(resnet20(layers=rows).to_json())
    return tmp_path


def _run(*words):
    return CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)


COMMANDS = ("engines", "recipes", "recipes show int8-static", "inspect {task}", "calibrate {task}", "outliers {task}",
            "sensitivity {task}", "report {folder}/one", "compare {folder}/one {folder}/two", "--version")  # fmt: skip


def _words(command, task_file, folder):
    return command.format(task=task_file, folder=folder).split()


@pytest.mark.parametrize("command", COMMANDS)
def test_json_alone_is_on_standard_output_and_quiet_prints_nothing(command, task_file, folder):
    words = _words(command, task_file, folder)
    found = json.loads(_run(*words, "--json").stdout)
    assert found == json.loads(_run("--json", *words).stdout) or "calibrate" in command
    done = _run(*words, "--quiet")
    assert done.exit_code == 0
    assert done.output.replace("what a task prints\n", "") == ""
    assert not console.quiet


def test_the_keys_of_json(task_file, folder):
    def keys(*words):
        return set(json.loads(_run(*words, "--json").stdout))

    plan = {"kind", "steps", "layers", "planned", "quantizers", "original_bytes", "predicted_bytes", "notes"}
    assert keys("inspect", task_file) == plan
    assert keys("calibrate", task_file) == {"samples", "sites", "warnings"}
    assert keys("report", folder / "one") == {"folder", "report"}
    assert keys("compare", folder / "one", folder / "two") == {"runs"}
    assert keys("engines") == {"engines", "cpu", "isa", "target", "int8"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--lang", "zh", "report"], "zh"),
        (["report", "x", "--lang=zh"], "zh"),
        (["report", "x", "--", "--lang", "zh"], None),
        (["report", "--lang", "fr"], None),
        ([], None),
    ],
)
def test_the_language_may_stand_anywhere(words, expected):
    assert Chosen.of(words).language == expected


def test_a_language_that_is_unknown_is_wrong_usage():
    done = _run("engines", "--lang", "fr")
    assert done.exit_code == 2
    assert "'en', 'zh'" in done.output or "en" in done.output


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("command", ["inspect {task}", "calibrate {task} --compare", "report {folder}/one"])
def test_a_name_is_never_broken(command, width, task_file, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    words = _words(command, task_file, folder)
    assert LONG in _run(*words).output
    wide = _run(*words, "--wide")
    assert LONG in wide.output
    assert "left out" not in wide.output


def test_the_reason_goes_first_where_room_is_scarce(task_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = _run("inspect", task_file).output
    assert re.search(r"left out for lack of width: .*\bwhy \(--wide shows all\)", said)
    assert "weight of conv2d" in _run("inspect", task_file, "--wide").output


def test_debug_shows_the_log_and_leaves_nothing_behind(task_file):
    before = list(logging.getLogger("tersor").handlers)
    done = _run("calibrate", task_file, "--debug")
    assert re.search(r"tersor\.pipeline\.progress: capture: \d+\.\d\d s", done.stderr)
    assert logging.getLogger("tersor").handlers == before
    assert [type(h) for h in before] == [logging.NullHandler]
    assert "tersor.pipeline" not in _run("calibrate", task_file).stderr


def test_the_help_parts_the_options_of_tasks_and_folders():
    for command in ("compress", "inspect"):
        panels = {p.name: p.rich_help_panel for p in get_command(app).commands[command].params}
        assert panels["engine"] == panels["target"] == "Options for task files"
        assert panels["layout"] == "Options for folders of language models"
        assert panels["recipe"] is None


BLOCKED = """
import sys
sys.modules["torch"] = None
from tersor.cli import main
sys.argv = ["tersor", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [(["--version"], 0, "tersor 0"), (["demo"], 1, "error: TersorError: Tersor needs torch, not installed here; run:")],
)
def test_without_pytorch(words, code, said, tmp_path):
    line = [sys.executable, "-c", BLOCKED, *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == code
    assert (done.stdout + done.stderr).startswith(said)
    assert len((done.stdout + done.stderr).strip().splitlines()) == 1


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error():
    line = f"{sys.executable} -m tersor.cli recipes --wide | head -c 1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=900)
    assert done.stderr == ""
