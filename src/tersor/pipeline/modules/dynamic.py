"""Data-free quantization in PyTorch: the result has the user's own model class and computes in integers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import nn

from tersor.errors import RecipeError
from tersor.network.explain import refuse_torchscript
from tersor.network.quantized import QuantizedWeight
from tersor.network.swap import check_copy, replace_modules, weighted_modules
from tersor.pipeline.modules.host import MODULES
from tersor.pipeline.modules.plan import ModulePlans, chosen_plans, module_plans
from tersor.pipeline.modules.replacement import replacement
from tersor.pipeline.modules.saving import refuse_saving
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Quantize, Recipe, resolve
from tersor.task import Task
from tersor.turns import in_turn
from tersor.words import _

_DEFAULT = "int8-dynamic"


@in_turn
def quantize_dynamic(
    model: nn.Module, recipe: Recipe | str | Path | None = None, *, progress: bool = True
) -> nn.Module:
    """A copy of a model whose linear and recurrent layers compute in int8, without calibration.

    Weights are quantized now, activations at run time with one scale per row (token). The result has the model's own
    class: ``generate``, hooks on other modules, packed sequences and hidden states keep working, and ``state_dict``
    contains the codes. The model itself is not changed. ``dynamic_plan`` lists what happens to each layer, and why some
    are not quantized.

    LSTM, GRU and RNN are computed by an installed engine if it supports them, with its own run-time scales
    (``QuantizedRecurrent``); PyTorch computes the rest.

    The result follows casts (``half()``) and works with ``torch.export``, ``torch.compile``, ``torch.jit.trace`` and
    ``torch.onnx.export``. ``weight`` of its layers reads as a float tensor; writing to it raises a NumericsError, and
    ``save_pretrained`` a SavedFolderError.

    Args:
        model: any module; its linear layers, embeddings, LSTM, GRU, RNN and their cells are quantized, and with a
            weight-only recipe its convolutions too. Or a student of ``tersor.trainable``: its layers get the codes that
            they were trained with, and the others stay float.
        recipe: ``int8-dynamic``, ``int16-dynamic``, ``int8-weight``, ``int4-weight``, ``fp16`` or ``bf16``, a
            Recipe with rules, or the path of its YAML file. ``@first`` and ``@last`` are the first and last module in
            the model's own order. None: ``int8-dynamic``, or what a student was trained for.

    Raises:
        RecipeError: a recipe that needs calibration, a rule that matches no layer, no layer left to quantize, or a
            recipe for a student.
        NumericsError: naming a weight with NaN or infinity.
        CaptureError: a model created by torch.jit.
        TaskError: naming the attribute of the model that cannot be copied.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    >>> small, x = quantize_dynamic(model), torch.ones(3, 64)
    >>> type(small).__name__, bool((small(x) - model(x)).abs().max() < 0.02)
    ('Sequential', True)
    """
    recipe = _asked(model, recipe)
    subject = Subject(model, ModuleHost(recipe.name), seed=recipe.seed)
    with Stages(progress) as stages:
        for step in recipe.steps:
            subject = step(subject, None, stages)
    assert subject.model is not None
    return subject.model


@in_turn
def dynamic_plan(model: nn.Module, recipe: Recipe | str | Path | None = None) -> ModulePlans:
    """The plan of ``quantize_dynamic`` for every module with weights, with reasons.

    >>> model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Linear(4, 2))
    >>> print(*dynamic_plan(model), sep="\\n")
    0 (conv1d): stays float: the activations of a convolution are quantized by a static recipe
    1 (linear): int8 per channel symmetric, activations int8 per token asymmetric
    """
    recipe = _asked(model, recipe)
    return module_plans(model, recipe.quantize, recipe.name)


def _asked(model: nn.Module, recipe: Recipe | str | Path | None) -> Recipe:
    refuse_torchscript(model)
    trained = None if recipe is None else next((w for w in weighted_modules(model) if w.quantizers), None)
    if trained is not None:
        raise RecipeError(
            f"the layers of this {type(model).__name__} were trained with their quantization, such as {trained.name}: "
            "leave `recipe` out"
        )
    recipe = resolve(_DEFAULT if recipe is None else recipe)
    MODULES.check(recipe)
    return recipe


@dataclass(frozen=True)
class ModuleHost:
    """Models whose modules are replaced by quantized ones of the same interface.

    Args:
        recipe: the recipe's name, for errors.
    """

    recipe: str
    name: ClassVar[str] = MODULES.host

    def quantize(self, step: Quantize, subject: Subject, task: Task | None, stages: Stages) -> Subject:
        """The subject with a quantized copy of its model."""
        model = subject.model
        assert model is not None
        plan = module_plans(model, step, self.recipe)
        chosen = chosen_plans(model, plan, self.recipe)
        check_copy(model)
        memory: dict[tuple[int, str, bool], QuantizedWeight] = {}
        with stages.stage("solve", _("quantizing"), len(chosen)) as bar:
            replacements = {}
            for module_plan in chosen:
                module = replacement(module_plan, subject.seed, memory).train(model.training)
                replacements[module_plan.weighted.module] = module
                bar.advance()
        changed = refuse_saving(replace_modules(model, replacements))
        return replace(subject, model=changed, plan=tuple(plan), history=(*subject.history, step))
