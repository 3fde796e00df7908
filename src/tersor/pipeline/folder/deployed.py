"""A language model in a folder, loaded into an engine on first use."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tersor.checkpoints.foreign.files import inside
from tersor.checkpoints.hf_folder import HfFolder
from tersor.checkpoints.manifest import MANIFEST, read_language_manifest
from tersor.engines import ENGINES
from tersor.engines.options import check_options
from tersor.errors import SavedFolderError, TersorError
from tersor.files import write_text
from tersor.measure.language import LanguageReport, is_language_report, read_language_report
from tersor.pipeline.compressed import Compressed, Deployed
from tersor.pipeline.folder.load import LanguageModel, candidates, load_language
from tersor.pipeline.folder.prompt import check_tokens
from tersor.pipeline.subject import Subject
from tersor.recipe import Recipe
from tersor.recipe.yaml_text import recipe_text


@dataclass(frozen=True, eq=False)
class InFolder(Deployed):
    """A language model that an engine runs from a folder.

    Args:
        folder: in the Hugging Face layout.
        wanted: an engine's name, or ``auto``, as in ``load_language``; None: PyTorch.
        threads: of OpenVINO; by default as many as PyTorch uses.
        precision: the precision of float operators.
    """

    folder: Path
    wanted: str | None = None
    threads: int | None = None
    precision: str = "f32"
    inputs = ()

    @cached_property
    def _found(self) -> LanguageModel:
        return load_language(self.folder, self.wanted, self.threads, self.precision)

    @property
    def runner(self) -> Any:
        """The transformers model, or OpenVINO's decoder."""
        return self._found.model

    @property
    def skip_reason(self) -> str | None:
        """Why ``auto`` skipped an engine; None if it runs in the first one."""
        return self._found.why_not

    @property
    def loaded(self) -> Any:
        """The runner, or None if it has not been needed yet."""
        return self.runner if "_found" in self.__dict__ else None

    @property
    def engine(self) -> str:
        """The name of the engine; with ``auto`` the model is loaded to determine it."""
        return self._found.engine if self.wanted == "auto" else candidates(self.wanted)[-1].name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for its arguments; OpenVINO's decoder returns logits."""
        runner = self.runner
        return runner(*args, **kwargs) if callable(runner) else runner.logits(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Let the model continue a prompt.

        Raises:
            TaskError: tokens that the model does not know, or more than it has positions for.
        """
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        # The second argument is a decoder's number of tokens, but a configuration in transformers.
        second = args[1] if len(args) > 1 and not ENGINES[self.engine].runs_modules else None
        more = kwargs.get("max_new_tokens", second)
        check_tokens(self.folder, ids, more)
        return self.runner.generate(*args, **kwargs)

    def write(self, folder: Path, result: Compressed) -> None:
        """Write a copy of the weights and of all known files."""
        HfFolder(self.folder).copy_to(folder, ("recipe.yaml", "report.json", "report.html"))
        if (self.folder / MANIFEST).is_file():
            manifest = read_language_manifest(self.folder)
            files = {name: entry for name, entry in manifest["files"].items() if (folder / name).is_file()}
            write_text(folder / MANIFEST, json.dumps(manifest | {"files": files}, indent=1))

    def compile(self, subject: Subject, engine: str, threads: int | None, precision: str) -> "InFolder":
        """The same folder in another engine, loaded."""
        check_options(None if engine == "auto" else candidates(engine)[-1], threads, precision)
        found = InFolder(self.folder, engine, threads, precision)
        _ = found.runner
        return found


def load_folder(folder: Path, engine: str | None = None, threads: int | None = None) -> Compressed:
    """A language model, loaded, with its recipe and report if Tersor wrote them.

    Raises:
        TersorError: as ``load_language``.
    """
    found = opened(folder, engine, threads)
    _ = found.model
    return found


def opened(folder: Path, engine: str | None = None, threads: int | None = None) -> Compressed:
    """The same, loaded when it is first used."""
    recipe = _recipe(inside(folder, "recipe.yaml", SavedFolderError))
    return Compressed(Subject(None, seed=recipe.seed), recipe, _report(folder), InFolder(folder, engine, threads))


def _recipe(path: Path) -> Recipe:
    return Recipe.from_yaml(recipe_text(path), str(path)) if path.is_file() else Recipe()


def _report(folder: Path) -> LanguageReport | None:
    try:
        return read_language_report(folder) if is_language_report(folder) else None
    except TersorError:
        return None
