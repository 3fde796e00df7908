"""The result of a recipe, whatever was compressed: it can be run, saved, and moved to other engines."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tersor.checkpoints.destination import check_folder, put_in_place
from tersor.errors import EngineError, RecipeError
from tersor.files import working_folder, writing
from tersor.measure.parts.contract import Tried
from tersor.network.network import Network
from tersor.pipeline.subject import Subject
from tersor.recipe import Recipe
from tersor.terminal import Shown
from tersor.turns import in_turn


class Deployed(ABC):
    """A result in an engine, provided by its host.

    Attributes:
        engine: the name of the engine.
        runner: the object that runs it.
        inputs: name, dtype and shape of each input.
        folder: where it is saved, if it runs from there.
        loaded: the runner, or None if it has not been needed yet.
        skip_reason: why it does not run in the preferred engine; None if it does.
    """

    engine: Any
    runner: Any
    inputs: Any
    folder: Any
    loaded: Any
    skip_reason: Any

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Let a language model continue a prompt."""
        return self.runner.generate(*args, **kwargs)

    @abstractmethod
    def write(self, folder: Path, result: "Compressed") -> None:
        """Write the whole result into an existing, empty folder."""

    def narrowed(self, subject: Subject) -> Any:
        """The pruned float network by names of tensors."""
        raise RecipeError("only a pruned network has a narrowed class: a folder is opened by transformers as it is")

    @abstractmethod
    def compile(self, subject: Subject, engine: str, threads: int | None, precision: str) -> "Deployed":
        """The result in another engine."""


@dataclass(frozen=True, eq=False, repr=False)
class Compressed(Shown):
    """The result of ``compress``, ``compress_folder`` and ``load``: a network, or a language model in a folder.

    For a language model, the attributes of its report and its model are available too: ``weights``, ``divergence``,
    ``headline()`` of the report, and once the model is loaded, ``config``, ``state_dict()``, ``parameters()``.

    Args:
        subject: the processed model: its quantized network, its plan, the steps applied.
        recipe: the recipe it was made with.
        report: the measurements: a ``Report``, or for a folder a ``LanguageReport``; None if nothing was measured.
        deployed: the result in an engine.
    """

    subject: Subject
    recipe: Recipe
    report: Any
    deployed: Deployed

    @property
    def engine(self) -> str:
        """The name of the engine it runs in."""
        return self.deployed.engine

    @property
    def runner(self) -> Any:
        """The object that runs it: an engine's ``Runner``; for a language model the same as ``model``."""
        return self.deployed.runner

    @property
    def model(self) -> Any:
        """For a language model, the transformers model or OpenVINO's decoder, loaded on first use.

        For a network, its ``runner``.
        """
        return self.deployed.runner

    @property
    def network(self) -> Network | None:
        """The quantized graph; None for folders, and if it was loaded from files that do not contain it."""
        return self.subject.network

    @property
    def plan(self) -> Any:
        """What is quantized and how: a ``Plan``, or for a folder its ``WeightPlan`` values; None if it was loaded."""
        return self.subject.plan

    @property
    def prunings(self) -> tuple[Any, ...]:
        """What each step `prune` of the recipe did: its target, widths before and after, and what could not go.

        Empty for a network that was loaded; its report tells it.
        """
        return self.subject.prunings

    @property
    def narrowed(self) -> Any:
        """The pruned float network by names of tensors, for ``tersor.narrow``; its ``save`` writes no pickle.

        Raises:
            RecipeError: the recipe has no step `prune`, or the network was loaded.
        """
        return self.deployed.narrowed(self.subject)

    @property
    def trainings(self) -> tuple[Any, ...]:
        """What happened in each step ``train``, also without a report; empty if there was none, or it was loaded.

        Of each: ``before`` and ``after``, the loss on held-out data of what training started with and of the trained
        network, lower is better; ``held_out``, what that loss is; ``kept``, False if training made the network worse
        and the one from before it is the result; ``notes``; and ``history``, whose ``epochs`` have ``number``,
        ``steps``, ``loss``, ``held_out``, ``rate`` and ``seconds``, and which has ``notes`` too. After a loop of your
        own, there is one if a report was made and the task has a loss.
        """
        return self.subject.trainings

    @property
    def inputs(self) -> tuple[dict[str, Any], ...]:
        """Name, dtype and shape of each input of a network."""
        return self.deployed.inputs

    @property
    def folder(self) -> Path | None:
        """The folder that a language model runs from; None for a network."""
        return self.deployed.folder

    @property
    def front(self) -> tuple[Tried, ...]:
        """Of a search the candidates that no other beats in speed and in what is lost, the fastest first.

        Raises:
            RecipeError: it was compressed by one recipe.
        """
        contract = getattr(self.report, "contract", None)
        if contract is None:
            raise RecipeError("only a result of tersor.optimize has a front: this one was compressed by one recipe")
        return tuple(sorted((t for t in contract.tried if t.front), key=lambda t: -(t.speedup or 0.0)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it. It is called like the model and returns the same structure, also when loaded from a folder.

        Inputs are tensors or arrays, by position or by name. A dict, list, tuple or None in the results is
        preserved; classes with named fields, such as dataclasses and those of transformers, are returned as such, and
        from a folder as a record that is read by key, attribute or position.
        """
        return self.deployed(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Let a language model continue ``input_ids`` by ``max_new_tokens``; the arguments are those of its engine.

        Raises:
            EngineError: it is not a language model.
            TaskError: tokens that the model does not know, or more than it has positions for.
        """
        if self.folder is None:
            raise EngineError("only a language model in a folder generates; call a network with its inputs")
        return self.deployed.generate(*args, **kwargs)

    @in_turn
    def compile(self, engine: str, *, threads: int | None = None, precision: str = "f32") -> "Compressed":
        """The result in another engine; the model's code, its data and its recipe are not needed.

        Args:
            engine: a name as for ``compress``; for a language model as for ``load``.
            threads: of the engine; None: all processors that this process may use.
            precision: the precision of float operators, ``f32`` or ``bf16``.

        Returns:
            A result whose report is None, since the measurements are of the other engine. The report of a language
            model does not depend on the engine, and is kept.

        Raises:
            EngineError: the engine is not installed or does not support the other one's plan, or the network was loaded
                from files that do not contain it.

        >>> import torch, tersor
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
        >>> task = tersor.Task("tiny", net, (torch.zeros(1, 3, 8, 8),), lambda: [(torch.rand(8, 3, 8, 8),)])
        >>> done = tersor.compress(task, engine="torch", report=False)
        >>> done.compile("openvino").engine
        'openvino'
        """
        deployed = self.deployed.compile(self.subject, engine, threads, precision)
        return replace(self, report=self.report if self.folder else None, deployed=deployed)

    @in_turn
    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write everything into a new folder, atomically.

        Args:
            force: replace the folder if it holds only what Tersor wrote, or nothing.

        Raises:
            SavedFolderError: the folder exists and ``force`` is not given, it contains anything not Tersor's, it cannot
                be written, or another run is writing it.
        """
        folder = check_folder(folder, force, () if self.folder is None else (self.folder,))
        with working_folder(folder) as parts:
            return save_in(parts, self, folder, force)

    def __getattr__(self, name: str) -> Any:
        """The attribute of a language model's report, or of its model if that is loaded."""
        deployed = self.__dict__.get("deployed")
        if deployed is None or name.startswith("_") or deployed.folder is None:
            raise AttributeError(f"Compressed has no attribute {name!r}")
        for source in (self.report, deployed.loaded):
            if source is not None and hasattr(source, name):
                return getattr(source, name)
        hint = "" if deployed.loaded is not None else "; its model is not loaded yet, and `.model` loads it"
        raise AttributeError(f"neither Compressed nor the report has an attribute {name!r}{hint}")


def save_in(
    parts: Path, result: Compressed, folder: Path, force: bool, others: Mapping[str, Path] = MappingProxyType({})
) -> Path:
    """Save ``result`` in ``folder``, whose working folder ``parts`` is locked by this run.

    Args:
        others: folders that are copied into it, by their paths there; they belong to the result.

    Raises:
        SavedFolderError: as ``Compressed.save``.
    """
    staging = parts / "out"
    with writing(folder):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            for name, other in others.items():
                shutil.copytree(other, staging / name)
            result.deployed.write(staging, result)
            put_in_place(staging, folder, force)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder
