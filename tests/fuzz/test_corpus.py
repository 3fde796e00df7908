"""The hostile corpus: no code of a folder runs, nothing outside of it is read, and what comes of it is said plainly."""

import contextlib
import io
import shutil
import socket
import sys
import time

import pytest

import tersor
from tersor.checkpoints import architecture, network
from tersor.checkpoints.foreign.files import read_array
from tersor.checkpoints.hf_folder import HfFolder
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.checkpoints.read import read_weights
from tersor.engines import engine
from tersor.errors import TersorError
from tersor.pipeline.folder.records import join
from tersor.recipe.recipe import resolve
from tests.fuzz.corpus import CASES, CODE, Case
from tests.fuzz.readers import DATA, write_plain, write_tokenizer

BASES = {
    "network": lambda f: shutil.copytree(DATA / "networks/torch-int4-weight", f, dirs_exist_ok=True),
    "onnx": lambda f: shutil.copytree(DATA / "networks/onnxruntime-int8-static", f, dirs_exist_ok=True),
    "quantized": lambda f: shutil.copytree(DATA / "language/compressed-tensors-mixed", f, dirs_exist_ok=True),
    "empty": lambda f: f.mkdir(exist_ok=True),
}
MESSAGES = [("here", [{"role": "user", "content": "a"}])]
USES = {
    "load": lambda f: tersor.load(f),
    "tokens": lambda f: architecture.open_tokenizer(f)("a b"),
    "chat": lambda f: join(MESSAGES, architecture.open_tokenizer(f)),
    "generate": lambda f: tersor.load(f).model,
    "index": lambda f: (f / "model.safetensors").unlink() or HfFolder(f),
    "snapshot": lambda f: tersor.load(f / "snapshots/0f"),
    "network": network.read,
    "weights": lambda f: list(read_weights(f)),
    "engine": lambda f: engine("onnxruntime").load(f, threads=1),
    "recipe": lambda f: resolve(f / "recipe.yaml"),
    "array": lambda f: read_array(f / "x.npy"),
}
OPENED: list[str] = []
SPOKEN: list[str] = []


@contextlib.contextmanager
def watched(monkeypatch, tmp_path):
    """Every file that Python opens is noted, every question is answered with yes, and no network is there."""
    if not SPOKEN:
        SPOKEN.append("an audit hook stays for ever")
        sys.addaudithook(lambda event, given: OPENED.append(str(given[0])) if event == "open" else None)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    monkeypatch.setenv("TERSOR_RAN", str(tmp_path / "ran"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.syspath_prepend("")
    monkeypatch.chdir(tmp_path / "outside")
    OPENED.clear()
    yield
    assert not (tmp_path / "ran").exists(), "code of the folder ran"
    secret = [path for path in OPENED if path.startswith((str(tmp_path / "outside"), "/etc/passwd", "/etc/hostname"))]
    assert secret == []


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A tiny Llama in one file, with a tokenizer."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("plain")
    write_plain(folder)
    entries = HfFolder(folder)
    tensors = dict(entries.tensors(list(entries.entries)))
    config = (folder / "config.json").read_text()
    write_tokenizer(folder)
    (folder / "config.json").write_text(config)
    for path in folder.glob("model*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def check(case: Case, plain, tmp_path, monkeypatch):
    folder = tmp_path / "x"
    (tmp_path / "outside").mkdir()
    if case.base == "plain":
        shutil.copytree(plain, folder)
    else:
        BASES[case.base](folder)
    case.change(folder)
    start = time.monotonic()
    with watched(monkeypatch, tmp_path):
        if case.error is None:
            USES[case.use](folder)
        else:
            with pytest.raises(TersorError) as caught:
                USES[case.use](folder)
            assert case.error in str(caught.value)
            assert len(str(caught.value)) < 2000
    assert time.monotonic() - start < 5


# One of each room is tried always, the others with the slow tests.
QUICK = ("config names code of a known kind", "tokenizer of its own class", "generation names code", "a pickle alone",
         "an absolute shard", "a linked config", "10⁹ layers", "deep JSON", "a pattern that goes back")  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_what_a_hostile_folder_comes_to(name, plain, tmp_path, monkeypatch):
    check(CASES[name], plain, tmp_path, monkeypatch)


def test_the_corpus_is_large():
    assert len(CASES) >= 60
    assert len(CODE) >= 20


@pytest.mark.slow
def test_only_known_side_files_are_copied(plain, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(plain, folder)
    for name in ("evil.py", "state.pkl", "LICENSE", "notes.html", "optimizer.pt", "run.sh"):
        (folder / name).write_text("x")
    (folder / "linked.txt").symlink_to("/etc/hostname")
    report = tersor.compress_folder(folder, tmp_path / "out", "int8-weight", progress=False).report
    copied = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"LICENSE", "tokenizer.json", "tokenizer_config.json"} <= copied
    assert not copied & {"evil.py", "state.pkl", "notes.html", "optimizer.pt", "run.sh", "linked.txt"}
    assert any("not copied" in w and "evil.py" in w and "state.pkl" in w for w in report.warnings)
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to("/etc/hostname")
    with pytest.raises(TersorError, match="is a link"):
        tersor.compress_folder(folder, tmp_path / "again", "int8-weight", progress=False)


def test_a_quantized_folder_needs_its_configuration(plain):
    with pytest.raises(TersorError, match="is not quantized"):
        QuantizedFolder(plain)
