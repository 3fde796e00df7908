"""`--json` and `--quiet` of the commands that make files: one value on standard output, or nothing at all."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tersor.demo import llama

TASK = """
import torch, tersor
from torch import nn

def task():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    data = [(torch.randn(8, 1, 8, 8),)]
    return tersor.Task("tiny", net.eval(), (torch.zeros(1, 1, 8, 8),), lambda: data)
"""


def _streams(*words, folder):
    done = subprocess.run(
        [sys.executable, "-m", "tersor.cli", *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("making")
    (folder / "task.py").write_text(TASK)
    np.save(folder / "x.npy", np.zeros((2, 1, 8, 8), "float32"))
    return folder


@pytest.mark.slow
def test_a_task_is_compressed_and_run(places):
    out, _ = _streams("compress", "task.py", "-o", "small", "--json", folder=places)
    made = json.loads(out)
    assert made["report"]["recipe"] == "int8-static"
    assert (places / "small" / "report.json").is_file()
    assert _streams("compress", "task.py", "-o", "small", "--force", "--quiet", folder=places) == ("", "")
    run = ("run", "small", "-i", "x.npy", "-o", "y.npy")
    assert "y.npy" in json.dumps(json.loads(_streams(*run, "--json", folder=places)[0]))
    assert _streams(*run, "-q", folder=places) == ("", "")


@pytest.mark.slow
def test_a_language_model_is_compressed_continued_and_exported(places):
    llama.write(places / "tiny", steps=2)
    model, text = "tiny/model", "tiny/train.txt"
    compress = ("compress", model, "-r", "int4-weight", "--valid", text, "--force")
    made = json.loads(_streams(*compress, "-o", "four", "--json", folder=places)[0])
    assert made["report"]["weights"]
    assert _streams(*compress, "-o", "again", "--quiet", folder=places) == ("", "")
    generate = ("generate", "four", "--prompt", "Once", "--tokens", "4")
    assert json.loads(_streams(*generate, "--json", folder=places)[0])
    assert json.loads(_streams("export", "four", "-o", "four.gguf", "--json", folder=places)[0])
    assert _streams("export", "four", "-o", "quiet.gguf", "--quiet", folder=places) == ("", "")
