"""Files are whole or absent, an error says why, one run at a time writes a folder, nothing is left behind."""

import errno
import json
import resource
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

import tersor
from tersor.checkpoints.manifest import replace_folder
from tersor.checkpoints.tensors import save_tensors
from tersor.errors import CheckpointError, SavedFolderError
from tersor.files import (
    disk_full,
    exclusively,
    parts_of,
    temporary_folder,
    whole_file,
    whole_files,
    working_folder,
    write_text,
    writing,
)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextmanager
def small():
    """Inside, no file may be larger than 1 kB: what a full disk does, to any library that writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def large_text(folder):
    write_text(folder / "a.json", "x" * 5000)


def large_tensors(folder):
    save_tensors({"a": torch.zeros(5000)}, folder / "a.safetensors")


def large_array(folder):
    with whole_file(folder / "a.npy") as part, part.open("wb") as file:
        np.save(file, np.zeros(5000))


def large_onnx(folder):
    import onnx

    from tersor.checkpoints.onnx.qdq import write_onnx

    write_onnx(onnx.ModelProto(doc_string="x" * 5000), folder)


def large_openvino(folder):
    import openvino as ov
    from openvino import opset13 as ops

    from tersor.engines.openvino.runner import save_model

    x = ops.parameter([1, 50], np.float32)
    save_model(ov.Model([ops.matmul(x, ops.constant(np.ones((50, 50), np.float32)), False, False)], [x]), folder)


@pytest.mark.parametrize("write", [large_text, large_tensors, large_array, large_onnx, large_openvino])
def test_what_does_not_fit_leaves_nothing(write, tmp_path):
    with small(), pytest.raises(SavedFolderError, match=rf"{tmp_path}.* cannot be written \(.*\): "):
        write(tmp_path / "new/deep") if write not in (large_onnx, large_openvino) else write(tmp_path)
    assert everything(tmp_path) == []


def test_what_was_there_stays_if_the_new_one_does_not_fit(tmp_path):
    write_text(tmp_path / "a.json", "old")
    with small(), pytest.raises(SavedFolderError, match="File too large"):
        large_text(tmp_path)
    assert everything(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file/a", "Not a directory"), ("n" * 300, "File name too long"), ("folder", "a folder or a device"),
     ("/dev/full", "a folder or a device"), ("loop", "symbolic links|a folder or a device")],
)  # fmt: skip
def test_a_place_that_takes_no_file_is_named_with_the_reason(name, reason, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    before = everything(tmp_path)
    if name == "loop":  # a link is replaced, not followed
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"
        return
    with pytest.raises(SavedFolderError, match=reason):
        write_text(tmp_path / name, "x")
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError(errno.ENOSPC, "No space left on device"), r"No space left on device\): make room"),
     (OSError(errno.EROFS, "Read-only file system"), r"Read-only file system\): choose a folder that may"),
     (PermissionError(errno.EACCES, "Permission denied"), r"Permission denied\): choose a folder that may"),
     (SafetensorError("I/O error: No space left on device (os error 28)"), r"No space left on device\): make room"),
     (OSError("odd"), r"odd\): choose another place")],
)  # fmt: skip
def test_errors_of_the_system_become_ours(error, words):
    with pytest.raises(CheckpointError, match=words) as caught, writing(Path("x"), CheckpointError):
        raise error
    assert disk_full(caught.value) == ("No space" in words)


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), writing(Path("x")):
        raise ZeroDivisionError
    with pytest.raises(CheckpointError), writing(Path("x")):
        raise CheckpointError("ours (os error 28)")


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_ends_the_writing_leaves_nothing(end, tmp_path):
    def half(path):
        path.write_text("half")
        raise end

    with pytest.raises(end), whole_files(tmp_path) as parts:
        half(parts / "a")
    with pytest.raises(end), whole_file(tmp_path / "deep/a") as part:
        half(part)
    with pytest.raises(end), working_folder(tmp_path / "deep/a"):
        raise end
    assert everything(tmp_path) == []


def test_one_run_at_a_time_writes_a_folder_or_file(tmp_path):
    found = []

    def second():
        for way in (lambda: working_folder(tmp_path / "out"), lambda: whole_file(tmp_path / "a")):
            with pytest.raises(SavedFolderError, match="another run is writing") as caught, way():
                pass
            found.append(str(caught.value))

    with working_folder(tmp_path / "out"), whole_file(tmp_path / "a") as part:
        part.touch()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        second()
    assert len(found) == 4
    assert everything(tmp_path) == ["a"]
    with working_folder(tmp_path / "out"):
        pass


def test_a_run_that_was_killed_between_two_moves_has_lost_nothing(tmp_path):
    parts = parts_of(tmp_path / "out")
    for name, content in ((parts / "old/a", "old"), (parts / "out/a", "half")):
        write_text(name, content)  # `out` was moved away, the new one is not there yet
    with working_folder(tmp_path / "out"):
        assert (tmp_path / "out/a").read_text() == "old"
        write_text(parts / "out/a", "new")
        replace_folder(parts / "out", tmp_path / "out")
    assert everything(tmp_path) == ["out", "out/a"]
    assert (tmp_path / "out/a").read_text() == "new"


def test_temporary_folders_of_killed_processes_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import os, tempfile, sys\n"
        "from tersor.files import temporary_folder\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "with temporary_folder() as folder:\n"
        "    (folder / 'a').touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    left = everything(tmp_path)
    assert len(left) == 4
    (tmp_path / "tersor-not-ours").mkdir()
    with temporary_folder() as folder, temporary_folder() as other:
        assert folder.is_dir()
        assert other.is_dir()
        assert not (tmp_path / left[0]).exists()
    assert everything(tmp_path) == ["tersor-not-ours"]


def test_no_temporary_folder_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(SavedFolderError, match="set TMPDIR to a folder that has room"), temporary_folder():
        pass


def test_a_result_is_saved_by_one_run_and_whole(small_task, tmp_path, monkeypatch):
    done = tersor.compress(small_task, engine="torch", report=False, progress=False)
    with working_folder(tmp_path / "out"), pytest.raises(SavedFolderError, match="another run is writing"):
        done.save(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("tersor.checkpoints.tensors.save_file", full)
        with pytest.raises(SavedFolderError, match=r"No space left on device\): make room"):
            done.save(tmp_path / "out")
    assert everything(tmp_path) == []
    done.save(tmp_path / "out")
    assert json.loads((tmp_path / "out/manifest.json").read_text())["engine"] == "torch"
    assert everything(tmp_path)[0] == "out"


def full(*_):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.fixture
def small_task():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2)).eval()
    return tersor.Task("t", model, (torch.zeros(1, 4),), lambda: [(torch.ones(8, 4),)])


def test_a_lock_is_waited_for_but_not_for_ever(tmp_path):
    seen = []

    def second():
        with exclusively(tmp_path / "x", seconds=5):
            seen.append("second")

    with exclusively(tmp_path / "x"):
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.2)
        seen.append("first")
    other.join()
    assert seen == ["first", "second"]
    with exclusively(tmp_path / "x"), exclusively(tmp_path / "x", seconds=0.1):
        pass
