"""The working folder of a long run: locked, and resumed after an interruption."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tersor.checkpoints.foreign.files import read_json, read_object
from tersor.checkpoints.tensors import save_tensors
from tersor.errors import SavedFolderError
from tersor.files import write_text

_JOB = "job.json"


class Journal:
    """The finished blocks of a run, in ``.NAME.partial`` beside the output folder.

    Attributes:
        folder: the working folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shard(self, number: int) -> Path:
        """The path of a block's tensors."""
        return self.folder / f"block-{number:05d}.safetensors"

    def done(self, number: int) -> bool:
        """Whether a block is stored completely."""
        return self.shard(number).is_file() and self._record_path(number).is_file()

    def write(self, number: int, tensors: Mapping[str, Tensor], record: Any) -> None:
        """Store a block: its tensors, then its record for the report."""
        save(tensors, self.shard(number))
        write_text(self._record_path(number), json.dumps(record))

    def record(self, number: int) -> Any:
        """The record of a block."""
        return read_json(self._record_path(number), SavedFolderError, "discard the interrupted run with --force")

    def _record_path(self, number: int) -> Path:
        return self.folder / f"block-{number:05d}.json"


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file as transformers reads it."""
    save_tensors({n: t.contiguous() for n, t in tensors.items()}, path, {"format": "pt"})


def journal(folder: Path, out: Path, job: Mapping[str, Any], force: bool) -> Journal:
    """The journal of this job.

    Args:
        folder: the working folder of ``out``, locked.
        job: everything that the result depends on; a run of a different job is not resumed.
        force: discard the working folder of a different job.

    Raises:
        SavedFolderError: it cannot be written, or it belongs to a different job.
    """
    _check_job(folder, job, out, force)
    return Journal(folder)


def _check_job(folder: Path, job: Mapping[str, Any], out: Path, force: bool) -> None:
    path, text = folder / _JOB, json.dumps(job, sort_keys=True, indent=1)
    stored = path.read_text(encoding="utf8") if path.is_file() else None
    if stored == text:
        return
    if stored is not None:
        if not force:
            try:
                other = read_object(path, SavedFolderError, "")
            except SavedFolderError:
                other = {"all": "unreadable"}
            changed = [key for key in sorted({*job, *other}) if job.get(key) != other.get(key)]
            raise SavedFolderError(
                f"{folder} holds an interrupted run of {out} with different {', '.join(changed)}: repeat its command "
                "to resume it, or discard it with --force (force=True)"
            )
        for old in folder.iterdir():
            if old.name != "lock":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    write_text(path, text)
