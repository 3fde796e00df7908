"""A compressed network in an engine: run it, save and load it, compile it for another engine."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tersor.checkpoints.foreign.files import inside
from tersor.checkpoints.manifest import FORMAT, MANIFEST, read_manifest, sha256, verify
from tersor.engines import engine as find_engine
from tersor.engines import load_runner
from tersor.engines.alone import alone
from tersor.engines.base import Runner
from tersor.engines.inputs import of_manifest, of_network, taken
from tersor.engines.options import check_options
from tersor.errors import EngineError, RecipeError, SavedFolderError, TaskError
from tersor.files import write_text
from tersor.measure import read_report
from tersor.measure.environment import usable_processors
from tersor.network.network import Network, op_name, title
from tersor.network.signature import Signature
from tersor.numerics import FORMATS, QuantSpec
from tersor.pipeline.compressed import Compressed, Deployed
from tersor.pipeline.graph.pruning.named.narrowed import Narrowed, narrowed
from tersor.pipeline.subject import Subject
from tersor.policy import Policy
from tersor.recipe import Recipe
from tersor.recipe.yaml_text import recipe_text
from tersor.report import html
from tersor.words import said


@dataclass(frozen=True, eq=False)
class InEngine(Deployed):
    """A network that an engine runs.

    Args:
        engine: the engine's name; ``runner`` runs the network.
        inputs: name, dtype and shape of each input; a dimension of None may have any size.
        signature: how the model is called and what it returns; None if an earlier version saved the folder without it.
        samples: some inputs, on which the saved files alone are compared with the runner; none for a loaded folder.
        target: the hardware that the plan was made for; None if an earlier version saved the folder without it.
    """

    engine: str
    runner: Runner
    inputs: tuple[dict[str, Any], ...]
    signature: Signature | None = None
    target: str | None = None
    samples: tuple[Tensor, ...] = ()
    folder = None
    skip_reason = None

    @property
    def loaded(self) -> Runner:
        """The runner."""
        return self.runner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network: called like the model, with tensors or arrays, it returns what the model returns.

        Raises:
            TaskError: too few, too many or misnamed arguments.
            EngineError: a shape or dtype that the network does not accept.
        """
        if self.signature is None:
            return self.runner(*self._by_name(args, kwargs))
        tensors = self.signature.flat(args, kwargs)
        try:
            out = self.runner(*tensors)
        except (EngineError, RuntimeError):
            taken(tensors, of_manifest(self.inputs))
            raise
        return self.signature.build((out,) if isinstance(out, Tensor) else out)

    def narrowed(self, subject: Subject) -> Narrowed:
        """The pruned float network by names of tensors.

        Raises:
            RecipeError: nothing was pruned, or the network was loaded.
        """
        if subject.source is None or subject.floats is None:
            raise RecipeError(
                "nothing was pruned here: the recipe has no step `prune`, or the network was loaded from a folder"
            )
        return narrowed(subject.source, subject.floats, subject.prunings)

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments by position; those by name follow in the order of the inputs."""
        names = [str(i["name"]) for i in self.inputs]
        if unknown := set(kwargs) - set(names[len(args) :]):
            raise TaskError(f"the argument {min(unknown)} is none that is left of the inputs {', '.join(names)}")
        return (*args, *(kwargs[name] for name in names if name in kwargs))

    def write(self, folder: Path, result: Compressed) -> None:
        """Write the engine's files, recipe, report and manifest into an existing folder.

        The files alone, in the engine's own runtime with its defaults, are compared with the runner; if they compute
        other numbers, a warning in the report says so.
        """
        shipped = self.runner.save(folder)
        checked = alone(find_engine(self.engine), folder, self.runner, self.samples) if self.samples else None
        report = result.report
        if report is not None and checked is not None and not checked.same:
            differs = said(
                "the files alone, in {engine} with its defaults, differ by {difference}, relative",
                engine=self.engine, difference=f"{checked.difference:.2g}",
            )
            differs += checked.note and f"; {checked.note}"
            report = report.model_copy(update={"warnings": (*report.warnings, differs)})
        write_text(folder / "recipe.yaml", result.recipe.to_yaml())
        if report is not None:
            write_text(folder / "report.json", report.to_json())
            write_text(folder / "report.html", html(report))
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
            "target": self.target,
            "alone": None if checked is None else {"difference": checked.difference, "note": checked.note},
            "signature": None if self.signature is None else self.signature.to_json(),
            "inputs": list(self.inputs),
            "files": files,
        }
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1))

    def compile(self, subject: Subject, engine: str, threads: int | None, precision: str) -> "InEngine":
        """Compile the subject's network for another engine."""
        if subject.network is None:
            raise EngineError(
                f"this network was loaded from the files of {self.engine}, which hold no Tersor graph; compile what "
                f"tersor.compress returned, or compress again for {engine}"
            )
        found = find_engine(engine)
        check_options(found, threads, precision)
        check_activations(subject.network, found.policy())
        runner = found.compile(subject.network, threads=threads or usable_processors(), precision=precision)
        return InEngine(engine, runner, self.inputs, self.signature, self.target, self.samples)


def check_activations(network: Network, policy: Policy) -> None:
    """Raise if activations were quantized for another engine in a way that this engine does not support."""
    for node in network.operators():
        if op_name(node) != "fake_quantize":
            continue
        source, _, zero_point, low, high = node.args[:5]
        symmetric = not bool(network.tensor(zero_point).any())  # type: ignore[arg-type]
        formats = (f for f in FORMATS.values() if f.kind == "int" and f.signed == (low < 0))  # type: ignore[operator]
        held = next((f for f in formats if f.low <= low and f.high >= high), None)  # type: ignore[operator]
        if held is None:
            continue
        try:
            policy.check_activation(title(source), QuantSpec(held, symmetric=symmetric))  # type: ignore[arg-type]
        except RecipeError as error:
            raise EngineError(f"{error}; compress again for {policy.engine}") from error


def inputs_of(network: Network) -> tuple[dict[str, Any], ...]:
    """Name, dtype and shape of each input, in the manifest's form."""
    return tuple({"name": i.name, "dtype": i.dtype, "shape": list(i.shape)} for i in of_network(network))


def load_network(folder: str | Path, threads: int | None = None) -> Compressed:
    """Load a network written by ``Compressed.save``; checksums are verified, and no code from the folder is executed.

    Raises:
        SavedFolderError: a file is missing or altered.
        EngineError: the network's engine is not installed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for path in folder.rglob("*"):  # so that no engine follows a link out of it
        inside(folder, path.relative_to(folder).as_posix(), SavedFolderError)
    verify(folder, manifest)
    recipe_file, report_file = folder / "recipe.yaml", folder / "report.json"
    recipe = (
        Recipe.from_yaml(recipe_text(recipe_file), str(recipe_file))
        if recipe_file.is_file()
        else Recipe()
    )
    runner = load_runner(manifest["engine"], str(folder), threads, manifest["precision"])
    report = read_report(report_file) if report_file.is_file() else None
    # The simulation's files contain the network itself.
    subject = Subject(None, network=getattr(runner, "network", None), seed=recipe.seed)
    signature = _signature(folder, manifest.get("signature"))
    deployed = InEngine(manifest["engine"], runner, tuple(manifest["inputs"]), signature, manifest.get("target"))
    return Compressed(subject, recipe, report, deployed)


def _signature(folder: Path, data: Any) -> Signature | None:
    try:
        return None if data is None else Signature.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SavedFolderError(f"{folder / MANIFEST} is damaged: its signature is not readable ({error})") from error
