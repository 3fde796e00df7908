"""The blocks of README and documentation are run, page by page, in a folder with the demo's task.

`console` blocks are run by a shell, `python` blocks without a prompt in one session for each page (those with one are
run by test_docs.py). A block that begins with `# NAME.py` becomes that file, a recipe the file of its name.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from tersor import demo
from tersor.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/en").rglob("*.md"))]
# Pages that have tests of their own.
ELSEWHERE = {"large-language-models": "tests/docs/test_language_page.py", "deploy": "tests/deploy/test_pages.py"}
# Lines that are not run, by their beginning, and why.
NOT_RUN = {
    "git clone ": "needs the network",
    "pip install ": "test_wheel.py builds and installs the package",
    "make ": "its target is looked up in the Makefile",
    "xdg-open ": "needs a desktop",
    "docker ": "needs a daemon and the network",
    "tersor compress task.py --out build/small ": "README has it again, as build/mine",
    "# before": "the library that is left behind",
    "# cifar.py": "reads the data of the benchmarks, on which training takes long; a test of its own runs it",
    "import lightning": "not installed here",
    "tersor finetune task.py --device ": "needs a GPU",
    "tersor finetune task.py --tracker ": "needs tensorboard",
    "tersor finetune task.py --recipe faster-trained": "its target is for branches; a long bench runs it",
}
# Lines that do the same whatever the page: run for the first of them.
ALIKE = ("tersor demo", "tersor engines")
_ran: set[str] = set()
MYNETWORK = """
from safetensors.torch import load_file
from tersor import demo

_digits = load_file(demo.HERE / "digits.safetensors")
net = network = demo.task().model
batches, top1 = demo.task().calibration, demo.task().evaluate
pictures, labels = demo.enlarge(_digits["test"]), _digits["labels"]
calibration_pictures = demo.enlarge(_digits["calibration"])
"""
# The little that pages about training train on, in place of the data of the benchmarks.
PICTURES = """
from safetensors.torch import load_file
from tersor import demo

_digits = load_file(demo.HERE / "digits.safetensors")
network = demo.task().model
train_pictures = demo.enlarge(_digits["calibration"])
held_out_pictures, test_pictures = demo.enlarge(_digits["test"][:132]).split([32, 100])
test_labels = _digits["labels"][32:132]
"""
COMMANDS = {
    "python": "",
    "tersor": "-m tersor.cli",
    "torchrun": "-m torch.distributed.run",
    "accelerate": "-m accelerate.commands.accelerate_cli",
}
TUTORIAL = ROOT / "docs/en/tutorials/training.md"
# Pages whose task is that of the tutorial on training.
TUTORIALS_TASK = {"train-on-several-processes", "prune-and-train"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks that this file runs, in their order; nested ones are dedented."""
    fence = re.compile(r"^( *)```(console|python|yaml)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
    found = fence.finditer(page.read_text("utf8"))
    parts = [(m[2], re.sub(rf"^{m[1]}", "", m[3], flags=re.MULTILINE)) for m in found]
    return [(language, text) for language, text in parts if ">>> " not in text]


def block_of(page: Path, start: str) -> str:
    """The block of a page that begins so."""
    return next(text for _, text in blocks(page) if text.startswith(start))


def loader() -> DataLoader:
    """Pictures and labels."""
    digits = load_file(demo.HERE / "digits.safetensors")
    pictures, labels = demo.enlarge(digits["test"][:128]), digits["labels"][:128].long()
    return DataLoader(TensorDataset(pictures, labels), batch_size=64, shuffle=True)


def reason(text: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if text.startswith(start)), None)


def lines(text: str) -> list[str]:
    """The commands of a console block that can be run."""
    return [line[2:] for line in text.splitlines() if line.startswith("$ ") and not reason(line[2:])]


RUN = [page for page in PAGES if any(language != "yaml" for language, _ in blocks(page))]
HERE = [page for page in RUN if not page.stem.startswith(tuple(ELSEWHERE))]


def test_pages_that_are_run_elsewhere_have_a_test_that_reads_them():
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text("utf8")


def test_make_has_the_targets():
    makefile = (ROOT / "Makefile").read_text("utf8")
    for page in RUN:
        for target in re.findall(r"^\$ make (\w+)", page.read_text("utf8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: no target {target}"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where a page is run: a task, a network, an input, and `tersor` and `python` on the path."""
    (tmp_path / "mynetwork.py").write_text(MYNETWORK)
    (tmp_path / "cifar.py").write_text(PICTURES)
    (tmp_path / "task.py").write_text("from tersor.demo import task\n")
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 32, 32), "float32"))
    for name, target in {"benchmarks": "benchmarks", "examples": "examples", "ci": "examples/ci"}.items():
        (tmp_path / name).symlink_to(ROOT / target)
    (tmp_path / "bin").mkdir()
    for name, words in COMMANDS.items():
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("task", "mynetwork", "cifar"):
        sys.modules.pop(name, None)


def run(line: str, folder: Path) -> None:
    """One line as a shell runs it; what is the same in every folder runs once."""
    command = line.partition("#")[0].strip()
    if command not in ALIKE or command not in _ran:
        done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    _ran.add(command)


def prepare(line: str, folder: Path, shared) -> None:
    """What a line takes for granted: a model of the reader's, the data of the benchmarks."""
    if "llama/" in line and not (folder / "llama").exists():
        from tersor.demo.llama import write

        write(folder, steps=2).rename(folder / "llama")
    if "benchmarks/tasks/" in line:
        shared("shared")


@pytest.mark.slow
@pytest.mark.parametrize("page", HERE, ids=lambda p: p.stem)
def test_every_block_of_the_page_runs(page, folder, request):
    task = demo.task()
    session = {
        "model": task.model, "example": task.example, "batches": task.calibration, "top1": task.evaluate,
        "batch": torch.zeros(2, 1, 32, 32), "loader": loader(), "tersor": __import__("tersor"), "torch": torch,
        "__name__": "page",
    }  # fmt: skip
    if page.stem in TUTORIALS_TASK:
        (folder / "task.py").write_text(block_of(TUTORIAL, "# task.py"))
    for language, text in blocks(page):
        first = re.match(r"# (\w+\.py)\n", text)
        if language == "yaml":
            (folder / f"{Recipe.from_yaml(text).name}.yaml").write_text(text)
        elif first and not reason(text):
            (folder / first[1]).write_text(text)
        elif language == "console":
            for line in lines(text):
                prepare(line, folder, request.getfixturevalue)
                run(line, folder)
        elif not reason(text):
            exec(compile(text, page.name, "exec"), session)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "prune-and-train"])
def test_the_pictures_of_a_tutorial_are_recognized(name, folder, shared, monkeypatch):
    """Normalized as the network expects, and held out from those that train."""
    monkeypatch.setenv("TERSOR_SHARED", str(shared))
    monkeypatch.setattr(sys, "path", [*sys.path])
    found: dict = {}
    exec(compile(block_of(TUTORIAL.with_stem(name), "# cifar.py"), name, "exec"), found)
    assert [len(found[f"{part}_pictures"]) for part in ("train", "held_out", "test")] == [45_000, 5_000, 10_000]
    with torch.no_grad():
        right = found["network"](found["test_pictures"][:500]).argmax(1) == found["test_labels"][:500]
    assert right.float().mean() > 0.88
