"""The manifest and checksums of a saved folder, and atomic replacement of folders."""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from tersor.errors import SavedFolderError

FORMAT = 1
MANIFEST = "manifest.json"
# The kind of a manifest whose folder is a language model in the Hugging Face layout.
LANGUAGE = "language"
# Files that Tersor writes into a saved folder, also later.
_WRITTEN_LATER = frozenset({MANIFEST, "report.json", "report.html", "outliers.html"})
# Bytes of a manifest that is read before a folder is replaced, and of a name with room for an ending.
_LARGEST, _LONG = 2**26, 200


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a saved folder.

    Raises:
        SavedFolderError: it is missing, damaged, or of a language model.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise SavedFolderError(f"{folder} has no {MANIFEST}: pass a folder that `tersor compress --out` wrote")
    try:
        manifest = json.loads(path.read_text(encoding="utf8"))
        if manifest.get("kind") == LANGUAGE:
            raise SavedFolderError(f"{folder} holds a language model: run it with `tersor generate` or tersor.load")
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
        wanted = {"engine": str, "precision": str, "inputs": list, "files": dict}
        for key, kind in wanted.items():
            if not isinstance(manifest[key], kind):
                raise ValueError(f"{key} is not a {kind.__name__}")
        for name, entry in manifest["files"].items():
            if not isinstance(entry["sha256"], str) or not isinstance(entry["shipped"], bool):
                raise ValueError(f"invalid entry for {name}")
    except (ValueError, KeyError, TypeError) as error:
        raise SavedFolderError(f"{path} is damaged ({error}): save the network again") from error
    return manifest


def verify(folder: Path, manifest: dict[str, Any]) -> None:
    """Check every file against its checksum; files that are not shipped may be missing."""
    for name, entry in manifest["files"].items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise SavedFolderError(
                f"{folder / MANIFEST} names the file {name!r} outside its folder: do not trust it"
            )
        if not path.is_file():
            if entry["shipped"]:
                raise SavedFolderError(f"{path} is missing: copy the folder again, or compress again")
        elif sha256(path) != entry["sha256"]:
            raise SavedFolderError(
                f"{path} was altered, its SHA-256 differs from the manifest's: copy it again, or compress again"
            )


def foreign(folder: Path) -> str | None:
    """Why a folder is not only what Tersor wrote into it, by its manifest; None: it is, or it is empty.

    What it tells keeps a folder from being replaced, so that in doubt it is foreign: a file or folder more, a link, or
    other content than the manifest's. A file may be missing; reports may have been written again.
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
    """The names of the files that Tersor wrote into a folder, by its manifest; none where it has none."""
    files = _files(folder)
    return set() if files is None else {MANIFEST, *files}


def _files(folder: Path) -> dict[str, str] | None:
    """The SHA-256 of each file of a manifest of Tersor's, of whatever kind; None where there is none."""
    path = folder / MANIFEST
    try:
        if path.is_symlink() or path.stat().st_size > _LARGEST:
            return None
        manifest = json.loads(path.read_text(encoding="utf8"))
        ours = manifest["format"] == FORMAT and (manifest.get("kind") == LANGUAGE or "engine" in manifest)
        return {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()} if ours else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def replace_folder(staging: Path, folder: Path) -> None:
    """Move ``staging`` to ``folder``; an existing folder is removed only after the new one is in place.

    Raises:
        SavedFolderError: the existing folder is not only what Tersor wrote; it is left as it is.
    """
    if not (folder.exists() or folder.is_symlink()):
        os.replace(staging, folder)
        return
    if reason := "it is no folder" if folder.is_symlink() or not folder.is_dir() else foreign(folder):
        raise SavedFolderError(f"{folder} is not replaced, since {reason}")
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
    return beside(folder, uuid.uuid4().hex[:8])


def beside(path: Path, ending: str) -> Path:
    """The hidden path of something that belongs to ``path``, in the same folder; of a long name the digest.

    >>> beside(Path("a/small"), "partial").as_posix()
    'a/.small.partial'
    """
    name, encoded = path.name, os.fsencode(path.name)
    if len(encoded) > _LONG:
        name = hashlib.sha256(encoded).hexdigest()[:32]
    return path.parent / f".{name}.{ending}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
