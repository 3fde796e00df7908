"""The manifest and checksums of a saved folder, and atomic replacement of folders."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from tersor.errors import SavedFolderError
from tersor.files import OLD

FORMAT = 1
MANIFEST = "manifest.json"
# The kind of a manifest whose folder is a language model in the Hugging Face layout.
LANGUAGE = "language"


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
    # Where `files.working_folder` looks for it if this run is killed now.
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
