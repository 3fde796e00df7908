"""The folder that a long run works in: locked, and taken up again after a kill."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from tersor.checkpoints.tensors import save_tensors
from tersor.errors import SavedFolderError

_JOB = "job.json"


class Journal:
    """What of a run is done, in ``.NAME.partial`` beside the folder to come.

    Attributes:
        folder: where the parts lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shard(self, number: int) -> Path:
        """The tensors of a block."""
        return self.folder / f"block-{number:05d}.safetensors"

    def done(self, number: int) -> bool:
        """Whether a block is written whole."""
        return self.shard(number).is_file() and self._record(number).is_file()

    def write(self, number: int, tensors: Mapping[str, Tensor], record: Any) -> None:
        """Keep a block: its tensors, then what is to be told of it."""
        part = self.shard(number).with_suffix(".part")
        save(tensors, part)
        os.replace(part, self.shard(number))
        part = self._record(number).with_suffix(".part")
        part.write_text(json.dumps(record), encoding="utf8")
        os.replace(part, self._record(number))

    def record(self, number: int) -> Any:
        """What was told of a block."""
        return json.loads(self._record(number).read_text(encoding="utf8"))

    def _record(self, number: int) -> Path:
        return self.folder / f"block-{number:05d}.json"


def parts_of(out: Path) -> Path:
    """Where the parts of a folder to come lie."""
    return out.parent / f".{out.name}.partial"


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """One safetensors file; a full disk is an OSError, as of any other file."""
    try:
        save_tensors({n: t.contiguous() for n, t in tensors.items()}, path, {"format": "pt"})
    except SafetensorError as error:
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, str(error)) from error
        raise


@contextmanager
def journal(out: Path, job: Mapping[str, Any], force: bool) -> Iterator[Journal]:
    """The working folder of ``out``, for this job alone.

    Args:
        job: all that the result depends on; a run with another job is not taken up.
        force: throw the parts of another job away.

    Raises:
        SavedFolderError: it cannot be written, another run is at work there, or the parts belong to another job.
    """
    folder = parts_of(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise SavedFolderError(f"{out} cannot be written ({error.strerror}); choose another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SavedFolderError(f"another run is writing {out}; wait for it, or choose another folder") from error
        _agree(folder, job, out, force)
        yield Journal(folder)


def _agree(folder: Path, job: Mapping[str, Any], out: Path, force: bool) -> None:
    path, text = folder / _JOB, json.dumps(job, sort_keys=True, indent=1)
    found = path.read_text(encoding="utf8") if path.is_file() else None
    if found == text:
        return
    if found is not None:
        if not force:
            try:
                other = json.loads(found)
            except ValueError:
                other = {"all": "unreadable"}
            changed = [key for key in sorted({*job, *other}) if job.get(key) != other.get(key)]
            raise SavedFolderError(
                f"{folder} holds a run of {out} that was broken off, with other {', '.join(changed)}; repeat its "
                "command to take it up, or give --force (force=True) to throw it away"
            )
        for old in folder.iterdir():
            if old.name != "lock":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf8")
    os.replace(part, path)
