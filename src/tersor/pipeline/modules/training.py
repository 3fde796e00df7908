"""Models whose layers train with their quantization, for recipes without calibration."""

from pathlib import Path
from typing import TypeVar

from torch import nn

from tersor.errors import RecipeError
from tersor.network.explain import refuse_torchscript
from tersor.network.swap import call_layers, check_copy, replace_modules, weighted_modules
from tersor.network.trained import train_with
from tersor.numerics import QTensor
from tersor.pipeline.modules.host import STUDENTS
from tersor.pipeline.modules.plan import ModulePlan, chosen_plans, module_plans
from tersor.pipeline.modules.replacement import by_outputs, solve
from tersor.pipeline.progress import Stages
from tersor.recipe import Recipe, Train, resolve
from tersor.tables import Named
from tersor.training.quantizers import Quantizer, Start, quantizer
from tersor.turns import in_turn
from tersor.words import _

Model = TypeVar("Model", bound=nn.Module)


@in_turn
def trainable_model(model: Model, recipe: Recipe | str | Path = "int8-dynamic", *, progress: bool = True) -> Model:
    """A copy of a model, of its own class, whose layers train with the quantization that ``dynamic_plan`` shows.

    Each such layer stays an instance of its class (``isinstance(layer, nn.Linear)``), its parameters keep their names,
    and ``weight_quantizer`` is added beside ``weight``; so FSDP2, PEFT and transformers' Trainer work as with the model
    itself. Inputs are quantized as the deployed layer does it; of LSTM, GRU and RNN see ``tersor.network.trained``.
    ``tersor.quantize_dynamic(student)`` then stores the codes.

    Learned scales are parameters ``….log_scale``, the logarithms of their ratio to the start: weight decay pulls them
    to their start.

    Args:
        recipe: one that ``quantize_dynamic`` takes; a step ``train`` only names the quantizers of weights.

    Raises:
        RecipeError: as ``quantize_dynamic``; a quantizer that does not train the format of a layer.

    >>> import torch, tersor
    >>> student = trainable_model(nn.Sequential(nn.Linear(64, 8)), "int4-weight")
    >>> [name for name, _ in student.named_parameters()]
    ['0.weight', '0.bias', '0.weight_quantizer.log_scale']
    >>> student(torch.ones(3, 64)).square().mean().backward()
    >>> small = tersor.quantize_dynamic(student.eval())
    >>> torch.equal(small(torch.ones(3, 64)), student(torch.ones(3, 64)))
    True
    """
    refuse_torchscript(model)
    recipe = resolve(recipe)
    step, asked = recipe.quantize, next((s for s in reversed(recipe.steps) if isinstance(s, Train)), Train())
    if step.activations.when == "static":
        raise RecipeError(
            f"the recipe {recipe.name} calibrates its activations, and a model alone has no data: give a tersor.Task, "
            "or a recipe such as int8-dynamic or int4-weight"
        )
    STUDENTS.check(recipe)
    if step.weights.format == "fp32" and not step.rules:
        raise RecipeError(f"the recipe {recipe.name} quantizes nothing: train the model itself")
    if asked.quantizers.activations != "auto":
        raise RecipeError(
            f"the recipe {recipe.name} names a quantizer of activations, whose ranges are computed at run time: name "
            "one for `weights` alone"
        )
    if known := next((w.name for w in weighted_modules(model) if w.quantizers), None):
        raise RecipeError(f"{known} trains with its quantization already: give the model that the student was made of")
    chosen = chosen_plans(model, module_plans(model, step, recipe.name), recipe.name)
    check_copy(model)
    student, memory = replace_modules(model, {}), {}
    with Stages(progress) as stages, stages.stage("solve", _("quantizing"), len(chosen)) as bar:
        for plan in chosen:
            weighted, names = plan.weighted, [n for n in plan.weighted.weights if n.startswith("weight")]
            quantizers = {n: _quantizer(plan, n, recipe.seed, asked.weight_quantizer, memory) for n in names}
            layer = student.get_submodule(weighted.name)
            train_with(layer, weighted.op, quantizers, plan.activation, weighted.transposed)
            bar.advance()
    call_layers(student)
    return student.train()  # type: ignore[return-value]


def _quantizer(
    plan: ModulePlan, name: str, seed: int, asked: Named, memory: dict[tuple[int, str, bool], Quantizer]
) -> Quantizer:
    """The quantizer of a weight, which starts from the solver's grid; tied weights share it."""
    weighted = plan.weighted
    weight = by_outputs(weighted, name)
    key = (id(weighted.module.get_parameter(name)), str(plan.weights), weighted.transposed)
    if key not in memory:
        start: QTensor = solve(plan, name, seed)
        kind: Named = "fixed" if start.spec.format.kind == "float" else asked
        title = f"{plan.name}.{name}"
        memory[key] = quantizer(kind, Start(title, start.spec, start.scale, start.zero_point, weight))
    return memory[key]
