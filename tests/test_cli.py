"""The command line on the embedded example and on bad input."""

import numpy as np
import pytest
from typer.testing import CliRunner

from tersor.cli import app, load_task
from tersor.errors import TaskError

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
