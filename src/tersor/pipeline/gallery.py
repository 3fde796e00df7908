"""The gallery of recipes: what each preset does, whether it needs data, and where its result runs."""

from contextlib import suppress
from dataclasses import dataclass

from tersor.checkpoints.layouts import LAYOUTS
from tersor.engines import ENGINES
from tersor.errors import CheckpointError, RecipeError
from tersor.numerics.formats import FORMATS
from tersor.numerics.spec import QuantSpec
from tersor.pipeline.folder.host import FOLDER
from tersor.pipeline.graph.host import GRAPH
from tersor.pipeline.modules.host import MODULES
from tersor.policy import Policy
from tersor.recipe import PRESETS, Capabilities, Quantize, Recipe, Train
from tersor.solvers import Sparsity, pruner_choice

# The role in which an engine supports a layer, by when its activations are quantized.
_ROLES = {"static": "layer", "dynamic": "runtime", "never": "stored"}
_HALVES = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Entry:
    """One recipe of the gallery.

    Args:
        name, description: of the recipe, in English.
        weight_bits, activation_bits: of layers that no rule changes; 32: they stay float.
        needs_data: whether it is calibrated.
        trains: whether it needs training data.
        engines: the engines that run a task compressed with it, by name; empty if it is not for tasks.
        folders: whether ``compress_folder`` supports it, for language models.
        modules: whether ``quantize_dynamic`` supports it.
    """

    name: str
    description: str
    weight_bits: int
    activation_bits: int
    needs_data: bool
    trains: bool
    engines: tuple[str, ...]
    folders: bool
    modules: bool


def gallery() -> tuple[Entry, ...]:
    """Every preset, in the order of its table.

    >>> [shown.needs_data for shown in gallery()[:5]]
    [True, True, True, False, False]
    """
    return tuple(described(make()) for make in PRESETS.values())


def described(recipe: Recipe) -> Entry:
    """A recipe in the gallery."""
    step = recipe.quantize
    when, needs = step.activations.when, needs_data(step)
    for_tasks, at_run_time = _takes(GRAPH, recipe), _takes(MODULES, recipe)
    return Entry(
        name=recipe.name,
        description=recipe.description,
        weight_bits=_bits(step.weights.format),
        activation_bits=_bits(step.activations.format),
        needs_data=needs,
        trains=any(isinstance(part, Train) for part in recipe.steps),
        engines=tuple(name for name in ENGINES if for_tasks and runs_in(name, step)),
        folders=when == "never" and _takes(FOLDER, recipe) and _held(step),
        modules=at_run_time and not needs,
    )


def needs_data(step: Quantize) -> bool:
    """Whether the step, its rules aside, reads calibration data."""
    if step.activations.when == "static" or step.awq or step.weights.choice().needs:
        return True
    return step.sparsity is not None and bool(pruner_choice(step.pruner, Sparsity.parse(step.sparsity)).needs)


def runs_in(engine: str, step: Quantize) -> bool:
    """Whether an engine, installed or not, supports a linear layer quantized by the step."""
    found = ENGINES[engine]
    try:
        _check(found.policy(found.targets[0].name if found.targets else None), step)
    except RecipeError:
        return False
    return True


def _check(policy: Policy, step: Quantize) -> None:
    when, weight = step.activations.when, step.weights.spec(policy.weight)
    if when == "never" and weight.format.name in _HALVES:
        return  # every engine stores them
    policy.check_weight("it", _ROLES[when], "linear", weight)
    if when == "static":
        policy.check_activation("it", step.activations.spec(policy.activation), ("linear",))
    elif when == "dynamic":
        policy.check_runtime("it", "linear", step.activations.spec(policy.runtime.default), weight)


def _held(step: Quantize) -> bool:
    """Whether any layout of folders stores the weights, or they stay float with zeros."""
    if step.weights.format == "fp32":
        return step.sparsity is not None
    spec = step.weights.spec(QuantSpec("int8", "channel"))
    for layout in LAYOUTS.values():
        with suppress(CheckpointError):
            layout.check("it.weight", (256, 256), spec)
            return True
    return False


def _takes(host: Capabilities, recipe: Recipe) -> bool:
    try:
        host.check(recipe)
    except RecipeError:
        return False
    return True


def _bits(format: str) -> int:
    return QuantSpec("int8").format.bits if format == "auto" else FORMATS[format].bits
