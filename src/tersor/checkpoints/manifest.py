"""The manifest and checksums of a saved folder, and atomic replacement of folders."""

import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from tersor.checkpoints.files import checked, inside, read_object
from tersor.errors import SavedFolderError

FORMAT = 1
MANIFEST = "manifest.json"
# The kind of a manifest whose folder is a language model in the Hugging Face layout.
LANGUAGE = "language"


class _File(BaseModel):
    """A file of a saved folder; what is not shipped may be missing."""

    model_config = ConfigDict(extra="allow")

    sha256: str
    shipped: StrictBool


class _Files(BaseModel):
    """What every manifest has."""

    files: Annotated[dict[str, _File], Field(max_length=100_000)]


class _Input(BaseModel):
    """An input of the network; a size of None may vary."""

    name: str
    dtype: str
    shape: Annotated[list[Annotated[StrictInt, Field(ge=0, lt=1 << 40)] | None], Field(max_length=64)]


class _Manifest(_Files):
    """That of a network."""

    model_config = ConfigDict(extra="allow")

    format: Literal[1]
    engine: str
    precision: str
    inputs: Annotated[list[_Input], Field(max_length=10_000)]
    target: str | None = None
    signature: dict[str, Any] | None = None


_REMEDY = "save the network again, or copy the folder again"


def kind_of(folder: Path) -> Any:
    """The ``kind`` of a folder's manifest; None if it has none or cannot be read."""
    try:
        return _read(folder).get("kind")
    except SavedFolderError:
        return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a saved folder.

    Raises:
        SavedFolderError: it is missing, damaged, or of a language model.
    """
    if not (folder / MANIFEST).is_file():
        raise SavedFolderError(f"{folder} has no {MANIFEST}: pass a folder that `tersor compress --out` wrote")
    content = _read(folder)
    if content.get("kind") == LANGUAGE:
        raise SavedFolderError(f"{folder} holds a language model: run it with `tersor generate` or tersor.load")
    return _checked(_Manifest, content, folder)


def read_language_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a language model's folder; raises SavedFolderError if it is damaged."""
    return _checked(_Files, _read(folder), folder)


def _read(folder: Path) -> dict[str, Any]:
    return read_object(inside(folder, MANIFEST, SavedFolderError), SavedFolderError, f"it is damaged; {_REMEDY}")


def _checked(model: type[_Files], content: dict[str, Any], folder: Path) -> dict[str, Any]:
    what = f"{folder / MANIFEST} is damaged"
    whole = checked(model, content, what, SavedFolderError, _REMEDY).model_dump()
    return content | {key: value for key, value in whole.items() if key not in content}


def verify(folder: Path, manifest: dict[str, Any]) -> None:
    """Check every file against its checksum; files that are not shipped may be missing."""
    for name, entry in manifest["files"].items():
        path = inside(folder, name, SavedFolderError)
        if not path.is_file():
            if entry["shipped"]:
                raise SavedFolderError(f"{path} is missing: copy the folder again, or compress again")
        elif sha256(path) != entry["sha256"]:
            raise SavedFolderError(
                f"{path} was altered, its SHA-256 differs from the manifest's: copy it again, or compress again"
            )


def check_free(folder: Path, force: bool) -> None:
    """Raise SavedFolderError, before any long work, if the folder exists and ``force`` is not set."""
    if folder.exists() and not force:
        raise SavedFolderError(f"{folder} exists: choose another folder, or overwrite it with --force (force=True)")
    if folder.exists() and not folder.is_dir():
        raise SavedFolderError(f"{folder} is a file, not a folder: choose another name")


def replace_folder(staging: Path, folder: Path) -> None:
    """Move ``staging`` to ``folder``; an existing folder is removed only after the new one is in place."""
    if not folder.exists():
        os.replace(staging, folder)
        return
    old = hidden_name(folder)
    os.replace(folder, old)
    try:
        os.replace(staging, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def hidden_name(folder: Path) -> Path:
    """An unused hidden name in the same parent folder."""
    return folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
