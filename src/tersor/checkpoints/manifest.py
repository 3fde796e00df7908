"""The manifest and checksums of a saved folder, and atomic replacement of folders."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from tersor.checkpoints.foreign.files import checked, inside, read_object
from tersor.errors import SavedFolderError
from tersor.files import OLD

FORMAT = 1
MANIFEST = "manifest.json"
# The kind of a manifest whose folder is a language model in the Hugging Face layout.
LANGUAGE = "language"
# That of a pruned model whose class the user has.
NARROWED = "narrowed"
# Files that Tersor writes into a saved folder, possibly later.
_WRITTEN_LATER = frozenset({MANIFEST, "report.json", "report.html", "outliers.html"})


# Files for people, who may write more into them.
_EDITED = frozenset({"README.md"})


class _File(BaseModel):
    """A file of a saved folder; a file that is not shipped may be missing."""

    model_config = ConfigDict(extra="allow")

    sha256: str
    shipped: StrictBool


class _Files(BaseModel):
    """Entries of every manifest."""

    files: Annotated[dict[str, _File], Field(max_length=100_000)]


class _Input(BaseModel):
    """An input of the network; a size of None may vary."""

    name: str
    dtype: str
    shape: Annotated[list[Annotated[StrictInt, Field(ge=0, lt=1 << 40)] | None], Field(max_length=64)]


class _Manifest(_Files):
    """The manifest of a network."""

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
    if content.get("kind") == NARROWED:
        raise SavedFolderError(f"{folder} holds a pruned model without its code: pass it to tersor.narrow")
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
    """Check every file against its checksum; files that are not shipped may be missing, a README.md is anybody's."""
    for name, entry in manifest["files"].items():
        path = inside(folder, name, SavedFolderError)
        if name in _EDITED:
            continue
        if not path.is_file():
            if entry["shipped"]:
                raise SavedFolderError(f"{path} is missing: copy the folder again, or compress again")
        elif sha256(path) != entry["sha256"]:
            raise SavedFolderError(
                f"{path} was altered, its SHA-256 differs from the manifest's: copy it again, or compress again"
            )


def not_ours(folder: Path) -> str | None:
    """Why a folder contains more than Tersor wrote, according to its manifest; None if it does not, or is empty.

    The reason prevents the folder from being replaced, so any doubt counts: an additional file or folder, a link, or
    content that differs from the manifest's. A file may be missing; reports may have been rewritten.
    """
    if not any(folder.iterdir()):
        return None
    if (files := _files(folder)) is None:
        return f"it holds files and no {MANIFEST} of Tersor's; choose another folder, or empty it yourself"
    folders = {parent.as_posix() for name in files for parent in Path(name).parents}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        known = name in files or name in _WRITTEN_LATER
        if path.is_symlink() or not (name in folders if path.is_dir() else known and path.is_file()):
            return f"{name} in it is not Tersor's; choose another folder, or move {name} away"
        if name in files and name not in _WRITTEN_LATER and sha256(path) != files[name]:
            return f"{name} in it was altered since Tersor wrote it; choose another folder, or remove it yourself"
    return None


def named_files(folder: Path) -> set[str]:
    """The names of the files that Tersor wrote into a folder, according to its manifest; empty without one."""
    files = _files(folder)
    return set() if files is None else {MANIFEST, *files}


def _files(folder: Path) -> dict[str, str] | None:
    """The SHA-256 of each file in a Tersor manifest of any kind, or None if there is none."""
    try:
        manifest = _checked(_Files, _read(folder), folder)
    except SavedFolderError:
        return None
    known = manifest.get("kind") in (LANGUAGE, NARROWED) or "engine" in manifest
    ours = manifest.get("format") == FORMAT and known
    return {name: entry["sha256"] for name, entry in manifest["files"].items()} if ours else None


def replace_folder(staging: Path, folder: Path) -> None:
    """Move ``staging`` to ``folder``; an existing folder is removed only after the new one is in place."""
    if not folder.exists():
        os.replace(staging, folder)
        return
    # `files.working_folder` looks for it here if this run is killed now.
    old = staging.with_name(OLD)
    os.replace(folder, old)
    try:
        os.replace(staging, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
