"""The result: a network in an engine with its recipe and report, saved and loaded."""

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tersor.engines import load_runner
from tersor.engines.base import Runner
from tersor.errors import SavedFolderError
from tersor.measure import Report, read_report
from tersor.network.network import Network
from tersor.network.sites import Plan
from tersor.recipe import Recipe
from tersor.report import html

FORMAT = 1
MANIFEST = "manifest.json"
# The kind of a manifest whose folder is a language model in the Hugging Face layout.
LANGUAGE = "language"


@dataclass(frozen=True)
class Compressed:
    """A compressed network.

    Args:
        engine: the name of the engine it runs on; ``runner`` runs it.
        recipe: how it was made.
        report: what was measured; None where measuring was switched off.
        network, plan: the quantized graph and its plan; None when it was loaded from an engine's files.
        inputs: name, dtype and shape of each input.
    """

    engine: str
    recipe: Recipe
    runner: Runner
    report: Report | None
    inputs: tuple[dict[str, Any], ...]
    network: Network | None = None
    plan: Plan | None = None

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run it: one tensor, or a tuple where the network has several outputs."""
        return self.runner(*inputs)

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write everything into a new folder, whole or not at all.

        Raises:
            SavedFolderError: the folder exists and ``force`` is not given.
        """
        folder = Path(folder)
        check_free(folder, force)
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = _hidden(folder)
        staging.mkdir()
        try:
            self._write(staging)
            exchange(staging, folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return folder

    def _write(self, folder: Path) -> None:
        shipped = self.runner.save(folder)
        (folder / "recipe.yaml").write_text(self.recipe.to_yaml(), encoding="utf8")
        if self.report is not None:
            (folder / "report.json").write_text(self.report.to_json(), encoding="utf8")
            (folder / "report.html").write_text(html(self.report), encoding="utf8")
        files = {
            p.relative_to(folder).as_posix(): {
                "sha256": sha256(p),
                "bytes": p.stat().st_size,
                "shipped": p.name in shipped,
            }
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }
        manifest = {
            "format": FORMAT,
            "engine": self.engine,
            "precision": self.runner.precision,
            "inputs": list(self.inputs),
            "files": files,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf8")


def load_network(folder: str | Path, threads: int | None = None) -> Compressed:
    """Load what ``Compressed.save`` wrote; checksums are compared, and nothing in it is executed.

    Raises:
        SavedFolderError: a file is missing or altered.
        EngineError: its engine is not installed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    verify(folder, manifest)
    recipe_file, report_file = folder / "recipe.yaml", folder / "report.json"
    recipe = (
        Recipe.from_yaml(recipe_file.read_text(encoding="utf8"), str(recipe_file))
        if recipe_file.is_file()
        else Recipe()
    )
    runner = load_runner(manifest["engine"], str(folder), threads, manifest["precision"])
    report = read_report(report_file) if report_file.is_file() else None
    return Compressed(manifest["engine"], recipe, runner, report, tuple(manifest["inputs"]))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a saved folder.

    Raises:
        SavedFolderError: there is none, or it is not Tersor's.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise SavedFolderError(f"{folder} holds no {MANIFEST}; give a folder that `tersor compress --out` wrote")
    try:
        manifest = json.loads(path.read_text(encoding="utf8"))
        if manifest.get("kind") == LANGUAGE:
            raise SavedFolderError(f"{folder} holds a language model: `tersor generate`, or tersor.load, runs it")
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
        wanted = {"engine": str, "precision": str, "inputs": list, "files": dict}
        for key, kind in wanted.items():
            if not isinstance(manifest[key], kind):
                raise ValueError(f"{key} is no {kind.__name__}")
        for name, entry in manifest["files"].items():
            if not isinstance(entry["sha256"], str) or not isinstance(entry["shipped"], bool):
                raise ValueError(f"the entry of {name}")
    except (ValueError, KeyError, TypeError) as error:
        raise SavedFolderError(f"{path} is damaged ({error}); save the network again") from error
    return manifest


def verify(folder: Path, manifest: dict[str, Any]) -> None:
    """Hold every file against its checksum; what need not be shipped may be missing."""
    for name, entry in manifest["files"].items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise SavedFolderError(
                f"{folder / MANIFEST} names the file {name!r} outside of its folder; do not trust it"
            )
        if not path.is_file():
            if entry["shipped"]:
                raise SavedFolderError(f"{path} is missing; copy the folder again, or compress again")
        elif sha256(path) != entry["sha256"]:
            raise SavedFolderError(
                f"{path} was altered: its SHA-256 is not the manifest's; copy it again, or compress again"
            )


def check_free(folder: Path, force: bool) -> None:
    """Refuse a folder that exists, before any work is done for it."""
    if folder.exists() and not force:
        raise SavedFolderError(f"{folder} exists and is kept; choose another folder, or give --force (force=True)")
    if folder.exists() and not folder.is_dir():
        raise SavedFolderError(f"{folder} is a file, not a folder; choose another name")


def exchange(staging: Path, folder: Path) -> None:
    """Put the new folder in place; the old one goes only once the new one stands."""
    if not folder.exists():
        os.replace(staging, folder)
        return
    old = _hidden(folder)
    os.replace(folder, old)
    try:
        os.replace(staging, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _hidden(folder: Path) -> Path:
    """A free name beside it."""
    return folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
