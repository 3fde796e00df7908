"""The result: a network in an engine with its recipe and report, saved and loaded."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tersor.checkpoints.manifest import (
    FORMAT,
    MANIFEST,
    check_free,
    hidden_name,
    read_manifest,
    replace_folder,
    sha256,
    verify,
)
from tersor.engines import load_runner
from tersor.engines.base import Runner
from tersor.measure import Report, read_report
from tersor.network.network import Network
from tersor.network.sites import Plan
from tersor.recipe import Recipe
from tersor.report import html


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
        staging = hidden_name(folder)
        staging.mkdir()
        try:
            self._write(staging)
            replace_folder(staging, folder)
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
