"""The page "Large language models" is run on stories260k, command by command."""

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
def test_every_command_of_the_page_runs(shared, tmp_path):
    texts = {"train.txt": "tinystories_train.txt", "valid.txt": "tinystories_valid.txt"}
    for name, source in texts.items():
        # A tenth of each: the page shows how, the benches how well.
        (tmp_path / name).write_text((shared / "data/stories260k" / source).read_text(encoding="utf8")[:60_000])
    for text in fenced("yaml"):
        recipe = Recipe.from_yaml(text)
        (tmp_path / f"{recipe.name}.yaml").write_text(text)
    lines = [line[2:] for block in fenced("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) >= 8
    said = {}
    for line in lines:
        words = shlex.split(line)
        if words[0] == "python":
            words[:2] = [sys.executable, str(ROOT / words[1])]
        else:
            words[:1] = [sys.executable, "-c", "from tersor.cli import main; main()"]
        environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, f"{line}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        said[line] = done.stdout
    assert "layers.0.mlp.down_proj" in said[lines[1]]
    assert all("perplexity" in said[line] for line in lines if line.startswith("tersor compress"))
    assert all("Once upon a time, there was" in said[line] for line in lines if line.startswith("tersor generate"))
    assert (tmp_path / "build/compare.html").stat().st_size > 10_000
    assert (tmp_path / "build/stories.gguf").read_bytes()[:4] == b"GGUF"
