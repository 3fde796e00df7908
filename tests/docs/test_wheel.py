"""The wheel of `make wheel` is whole: what the package reads beside its code is in it, and it runs once installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/tersor"
# Beside code: templates, styles, scripts, translations, the demo's data, type marker.
KINDS = (".j2", ".html", ".css", ".js", ".mo", ".safetensors", ".md", ".typed", ".yaml", ".json", ".svg", ".txt")


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words, "--quiet", "--no-deps"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_is_whole_and_runs(tmp_path):
    pip("wheel", ".", "--wheel-dir", str(tmp_path))
    (wheel,) = tmp_path.glob("tersor-*.whl")
    target = tmp_path / "site"
    pip("install", str(wheel), "--target", str(target))
    tracked = subprocess.run(["git", "ls-files", "src/tersor"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [Path(line).relative_to("src") for line in tracked.stdout.splitlines()]
    assert {"words", "demo", "report"} <= {name.parts[1] for name in names if name.suffix in KINDS}
    assert [name for name in names if not (target / name).is_file()] == []
    done = subprocess.run(
        [str(target / "bin/tersor"), "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("tersor "), done.stderr
