"""Where output may be written: what is refused with and without force, and that nothing in it is touched."""

import json
import os
from pathlib import Path

import pytest

from tersor.checkpoints.destination import check_file, check_folder, put_in_place, write_page
from tersor.checkpoints.manifest import sha256
from tersor.errors import SavedFolderError
from tersor.files import beside, whole_file, working_folder


def saved(folder: Path, **more: str) -> Path:
    """A folder as Tersor writes it, and then ``more`` files."""
    (folder / "sub").mkdir(parents=True)
    for name in ("model.bin", "sub/part.bin", "recipe.yaml"):
        (folder / name).write_text(name)
    files = {n: {"sha256": sha256(folder / n), "shipped": True} for n in ("model.bin", "sub/part.bin", "recipe.yaml")}
    manifest = {"format": 1, "engine": "torch", "precision": "f32", "inputs": [], "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name, text in more.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, str | None]:
    return {str(p): p.read_text() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("more", [{}, {"report.html": "again"}, {"outliers.html": "a page"}])
def test_what_tersor_wrote_is_replaced_with_force_only(tmp_path, more):
    out = saved(tmp_path / "out", **more)
    with pytest.raises(SavedFolderError, match=r"exists: choose another folder.*--force"):
        check_folder(out)
    check_folder(out, force=True)
    with working_folder(out) as parts:
        (parts / "new").mkdir()
        put_in_place(parts / "new", out, force=True)
    assert contents(tmp_path) == {str(out): None}


def _link(out):
    (out / "link").symlink_to("model.bin")


FOREIGN = {
    "a file more": lambda out: (out / "task.py").write_text("mine"),
    "a repository": lambda out: (out / ".git").mkdir(),
    "a file in a folder": lambda out: (out / "sub" / "notes.txt").write_text("mine"),
    "an empty folder in it": lambda out: (out / "sub" / "empty").mkdir(),
    "a link": _link,
    "an altered file": lambda out: (out / "recipe.yaml").write_text("my own recipe"),
    "no manifest": lambda out: (out / "manifest.json").unlink(),
    "a broken manifest": lambda out: (out / "manifest.json").write_text("{"),
    "a manifest of another tool": lambda out: (out / "manifest.json").write_text('{"name": "app", "files": {}}'),
    "a list for a manifest": lambda out: (out / "manifest.json").write_text("[" * 100_000),
    "a file for a folder": lambda out: ((out / "sub/part.bin").unlink(), (out / "sub").rmdir(), os.mkfifo(out / "sub")),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_tersors_is_kept(tmp_path, kind):
    out = saved(tmp_path / "out")
    FOREIGN[kind](out)
    before = contents(tmp_path)
    for force in (False, True):
        with pytest.raises(SavedFolderError, match=r"exists|not replaced"):
            check_folder(out, force)
    with pytest.raises(SavedFolderError, match="not replaced"):
        put_in_place(tmp_path / "new", out, force=True)
    assert contents(tmp_path) == before


def _there(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


FOLDERS = {
    "root": (lambda t: Path("/"), "root|mount"),
    "a mount": (lambda t: Path("/proc"), "mount point"),
    "working": (lambda t: Path("."), "working folder"),
    "above working": (lambda t: Path(".."), "parent of the working folder"),
    "above above": (lambda t: t / "work", "parent of the working folder"),
    "home": (lambda t: Path(os.environ["HOME"]), "home folder"),
    "above home": (lambda t: Path(os.environ["HOME"]).parent, "parent of the home folder"),
    "source": (lambda t: t / "m/model", "is or holds the model"),
    "above source": (lambda t: t / "m", "is or holds the model"),
    "in source": (lambda t: t / "m/model/new", "lies in the folder of the model"),
    "above a task": (lambda t: t / "tasks", "is or holds the task"),
    "a link": (lambda t: t / "link", "symbolic link"),
    "a dangling link": (lambda t: t / "dangling", "symbolic link"),
    "under a dangling link": (lambda t: t / "dangling/out", "dangling is no folder"),
    "under a loop": (lambda t: t / "loop/out", "cannot be written"),
    "a file": (lambda t: t / "file", "is a file"),
    "under a file": (lambda t: t / "file/a/b", "file is no folder"),
    "a long name": (lambda t: t / ("n" * 300), "too long: 300 bytes"),
    "a long name above": (lambda t: t / ("ü" * 150) / "out", "too long: 300 bytes"),
    "a long path": (lambda t: t / "/".join(["n" * 200] * 20), "too long"),
    "the kernel's": (lambda t: Path("/proc/self/out"), "devices and processes"),
    "the kernel's devices": (lambda t: Path("/dev/out"), "devices and processes"),
    "NUL": (lambda t: f"{t}/a\0b", "NUL"),
    "half a character": (lambda t: f"{t}/\ud800", "half of a character"),
    "empty": (lambda t: "", "empty"),
    "no path": (lambda t: None, "None"),
    "a number": (lambda t: 3, "is 3, no path"),
    "bytes": (lambda t: b"out", "no path"),
}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("force", [False, True])
def test_folders_that_are_never_written(tmp_path, monkeypatch, kind, force):
    for name in ("m/model", "tasks", "home/me", "work/here"):
        _there(tmp_path / name)
    (tmp_path / "tasks/task.py").write_text("task")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(_there(tmp_path / "other"))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setenv("HOME", str(tmp_path / "home/me"))
    monkeypatch.chdir(tmp_path / "work/here")
    make, said = FOLDERS[kind]
    before = contents(tmp_path)
    with pytest.raises(SavedFolderError, match=said):
        check_folder(make(tmp_path), force, (tmp_path / "m/model", tmp_path / "tasks/task.py"))
    assert contents(tmp_path) == before


def test_room_is_asked_for_before_the_run(tmp_path):
    with pytest.raises(SavedFolderError, match=r"needs 1000000000000\.0 MB.*make room"):
        check_folder(tmp_path / "out", size=10**18)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    _there(tmp_path / "closed").chmod(0o500)
    with pytest.raises(SavedFolderError, match="cannot be written"):
        check_folder(tmp_path / "closed/out")


FILES = {
    "a folder": (lambda t: t, "is a folder"),
    "a device": (lambda t: "/dev/null", "device"),
    "a pipe": (lambda t: t / "pipe.html", "device or a pipe"),
    "a link": (lambda t: t / "link.html", "symbolic link"),
    "a dangling link": (lambda t: t / "dangling.html", "symbolic link"),
    "the kernel's": (lambda t: "/proc/self/page.html", "devices and processes"),
    "under a file": (lambda t: t / "page.html/a.html", "is no folder"),
    "another kind of file": (lambda t: t / "task.py", r"no \.html file"),
    "a source": (lambda t: t / "read.html", "files that are read"),
    "a saved file": (lambda t: t / "saved/report.html", "belongs to what Tersor saved"),
    "a long name": (lambda t: t / f"{'n' * 300}.html", "too long"),
    "NUL": (lambda t: f"{t}/\0.html", "NUL"),
    "no path": (lambda t: None, "None"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_never_written(tmp_path, kind):
    saved(tmp_path / "saved", **{"report.html": "saved"})
    manifest = json.loads((tmp_path / "saved/manifest.json").read_text())
    manifest["files"]["report.html"] = {"sha256": "0", "shipped": False}
    (tmp_path / "saved/manifest.json").write_text(json.dumps(manifest))
    for name in ("page.html", "task.py", "read.html"):
        (tmp_path / name).write_text("mine")
    os.mkfifo(tmp_path / "pipe.html")
    (tmp_path / "link.html").symlink_to("page.html")
    (tmp_path / "dangling.html").symlink_to("nowhere.html")
    make, said = FILES[kind]
    before = contents(tmp_path)
    with pytest.raises(SavedFolderError, match=said):
        check_file(make(tmp_path), ".html", sources=[tmp_path / "read.html"])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["page.html", "n" * 245 + ".html", "a/b/page.html"])
def test_a_file_is_written_whole_and_replaced(tmp_path, name):
    path = tmp_path / name
    write_page(path, "one")
    assert write_page(path, "two").read_text() == "two"
    with pytest.raises(ZeroDivisionError), whole_file(path) as part:
        part.write_text(f"half {1 / 0}")
    assert [p.read_text() for p in path.parent.iterdir()] == ["two"]


def test_names_beside_a_long_one_fit_and_differ(tmp_path):
    names = {beside(tmp_path / ("n" * 249 + end), "partial").name for end in "ab"}
    assert len(names) == 2
    assert all(len(n) < 60 for n in names)


def test_a_folder_that_is_bound_to_another_is_a_mount_point(tmp_path, monkeypatch):
    monkeypatch.setattr("tersor.checkpoints.destination._mounts", lambda: {f"{tmp_path}/a\\040b"})
    (tmp_path / "a b").mkdir()
    with pytest.raises(SavedFolderError, match="mount point"):
        check_folder(tmp_path / "a b", force=True)
    assert check_folder(tmp_path / "a b/out") == tmp_path / "a b/out"


@pytest.mark.parametrize("force", ["yes", 1, None])
def test_force_is_true_or_false(tmp_path, force):
    with pytest.raises(SavedFolderError, match="it must be True or False"):
        check_folder(tmp_path / "out", force)
