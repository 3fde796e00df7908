"""The page "Large language models" is run, command by command, from a model that it trains itself."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tersor.checkpoints.layouts import LAYOUTS
from tersor.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/en/tutorials/large-language-models.md"


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf8"), re.MULTILINE | re.DOTALL)


def test_the_page_has_a_row_for_every_layout():
    rows = re.findall(r"^\| (`[a-z].*?) \|", PAGE.read_text(encoding="utf8"), re.MULTILINE)
    assert set(LAYOUTS) <= {name for row in rows for name in re.findall("`(.*?)`", row)}


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path):
    for text in fenced("yaml"):
        recipe = Recipe.from_yaml(text)
        (tmp_path / f"{recipe.name}.yaml").write_text(text)
    lines = [line[2:] for block in fenced("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) >= 8
    said = {line: run(line, tmp_path) for line in lines}
    assert (tmp_path / "build/tiny/model/model.safetensors").stat().st_size < 1e6
    assert "layers.0.mlp.down_proj" in said[lines[1]]
    assert all("perplexity" in said[line] for line in lines if line.startswith("tersor compress"))
    assert all("Once upon a time, there was" in said[line] for line in lines if line.startswith("tersor generate"))
    assert (tmp_path / "build/compare.html").stat().st_size > 10_000
    assert (tmp_path / "build/tiny.gguf").read_bytes()[:4] == b"GGUF"
    (tmp_path / "page.py").write_text("\n".join(fenced("python")))
    assert "smaller" in run("python page.py", tmp_path)


def run(line: str, folder: Path) -> str:
    """The output of one line of a page, whose command is `tersor` or `python`."""
    words = shlex.split(line)
    tersor = ["-c", "from tersor.cli import main; main()"]
    command = [sys.executable, *(tersor if words[0] == "tersor" else []), *words[1:]]
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, f"{line}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout
