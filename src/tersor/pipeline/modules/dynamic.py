"""Data-free quantization in PyTorch: the result has the user's own model class and computes in integers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tersor.engines.recurrent import recurrent_kernel
from tersor.errors import RecipeError
from tersor.network.explain import refuse_torchscript
from tersor.network.quantized import (
    QuantizedCell,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedRecurrent,
    QuantizedWeight,
    WeightOnly,
)
from tersor.network.swap import (
    CELLS,
    CONVOLUTIONS,
    RECURRENT,
    WeightedModule,
    check_copy,
    replace_modules,
    weighted_modules,
)
from tersor.numerics import Granularity, QTensor, QuantSpec
from tersor.pipeline.modules.host import MODULES
from tersor.pipeline.modules.saving import refuse_saving
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Quantization, Quantize, Recipe, decide, resolve, with_names
from tersor.solvers import LayerProblem, ask
from tersor.task import Task
from tersor.terminal import Shown
from tersor.turns import in_turn
from tersor.words import _, said

_WEIGHT = QuantSpec("int8", "channel")
_ACTIVATION = QuantSpec("int8", "token", symmetric=False)
# Elements of a weight quantized at once.
_CHUNK = 2**18


@dataclass(frozen=True, eq=False)
class ModulePlan:
    """The plan for one module.

    Args:
        weights: how its weights are stored; None if the module is not quantized.
        activation: how its input is quantized at run time; None if it stays float.
        reason: the reason, as text.
    """

    weighted: WeightedModule
    weights: Quantization | None
    activation: QuantSpec | None
    reason: str

    @property
    def name(self) -> str:
        """The module's dotted name."""
        return self.weighted.name or type(self.weighted.module).__name__

    def __str__(self) -> str:
        return f"{self.name} ({self.weighted.op}): {self.reason}"


class ModulePlans(Shown, list[ModulePlan]):
    """The plan of a model's modules, in the model's order, shown as a table in notebooks."""


@in_turn
def quantize_dynamic(
    model: nn.Module, recipe: Recipe | str | Path = "int8-dynamic", *, progress: bool = True
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
            weight-only recipe its convolutions too.
        recipe: ``int8-dynamic``, ``int16-dynamic``, ``int8-weight``, ``int4-weight``, ``fp16`` or ``bf16``, a
            Recipe with rules, or the path of its YAML file. ``@first`` and ``@last`` are the first and last module in
            the model's own order.

    Raises:
        RecipeError: a recipe that needs calibration, a rule that matches no layer, or no layer left to quantize.
        NumericsError: naming a weight with NaN or infinity.
        CaptureError: a model created by torch.jit.
        TaskError: naming the attribute of the model that cannot be copied.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    >>> small, x = quantize_dynamic(model), torch.ones(3, 64)
    >>> type(small).__name__, bool((small(x) - model(x)).abs().max() < 0.02)
    ('Sequential', True)
    """
    refuse_torchscript(model)
    recipe = resolve(recipe)
    MODULES.check(recipe)
    subject = Subject(model, ModuleHost(recipe.name), seed=recipe.seed)
    with Stages(progress) as stages:
        for step in recipe.steps:
            subject = step(subject, None, stages)
    assert subject.model is not None
    return subject.model


@in_turn
def dynamic_plan(model: nn.Module, recipe: Recipe | str | Path = "int8-dynamic") -> ModulePlans:
    """The plan of ``quantize_dynamic`` for every module with weights, with reasons.

    >>> model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Linear(4, 2))
    >>> print(*dynamic_plan(model), sep="\\n")
    0 (conv1d): stays float: the activations of a convolution are quantized by a static recipe
    1 (linear): int8 per channel symmetric, activations int8 per token asymmetric
    """
    refuse_torchscript(model)
    recipe = resolve(recipe)
    MODULES.check(recipe)
    return ModulePlans(_plans(model, recipe.quantize, recipe.name))


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
        plan = _plans(model, step, self.recipe)
        chosen = [e for e in plan if e.weights is not None]
        if not chosen:
            why = "; ".join(map(str, plan[:3])) or "it has no layer with weights"
            raise RecipeError(f"nothing in this {type(model).__name__} can be quantized by {self.recipe}: {why}")
        check_copy(model)
        memory: dict[tuple[int, str, bool], QuantizedWeight] = {}
        with stages.stage("solve", _("quantizing"), len(chosen)) as bar:
            replacements = {}
            for module_plan in chosen:
                module = _replacement(module_plan, subject.seed, memory).train(model.training)
                replacements[module_plan.weighted.module] = module
                bar.advance()
        changed = refuse_saving(replace_modules(model, replacements))
        return replace(subject, model=changed, plan=tuple(plan), history=(*subject.history, step))


def _plans(model: nn.Module, step: Quantize, recipe: str) -> list[ModulePlan]:
    if step.activations.when == "static":
        raise RecipeError(
            f"the recipe {recipe} calibrates its activations: use tersor.compress, or a recipe whose "
            "activations have `range: dynamic` or `format: fp32`"
        )
    found = weighted_modules(model)
    step = with_names(step, [(h.name, h.op) for h in found], [h.name for h in found])
    plan = [_planned(weighted, step) for weighted in found]
    unquantized = {id(t): e for e in plan if e.weights is None for t in e.weighted.tensors()}
    return [_with_ties(e, unquantized) for e in plan]


def _with_ties(module_plan: ModulePlan, unquantized: dict[int, ModulePlan]) -> ModulePlan:
    tied = next((unquantized[id(t)] for t in module_plan.weighted.tensors() if id(t) in unquantized), None)
    if module_plan.weights is None or tied is None:
        return module_plan
    reason = said("stays float: tied to {name}, which stays float", name=tied.name)
    return ModulePlan(module_plan.weighted, None, None, reason)


def _planned(weighted: WeightedModule, step: Quantize) -> ModulePlan:
    if weighted.skip_reason:
        return ModulePlan(weighted, None, None, said("not quantized: {reason}", reason=weighted.skip_reason))
    found = decide(weighted.name, weighted.op, step, _WEIGHT)
    if found.keep == "fp32":
        return ModulePlan(weighted, None, None, said("stays float: {reason}", reason=found.reason))
    weights, activations = found.weights, found.activations
    if found.keep is not None:
        weights, activations = Quantization(format=found.keep, granularity="tensor"), Quantization(format="fp32")
    activation = _activation(weighted, activations)
    if activation is not None and weighted.op in CONVOLUTIONS:
        reason = said("stays float: the activations of a convolution are quantized by a static recipe")
        return ModulePlan(weighted, None, None, reason)
    if weighted.op == "embedding":
        activation = None
    if (solver := weights.choice()).needs:
        raise RecipeError(
            f"{weighted.name}: {solver.name} solves a weight against calibrated inputs of its layer, and this function "
            "does not calibrate: use tersor.compress, or `solver: rtn`"
        )
    spec = weights.spec(_WEIGHT)
    _check(weighted, spec, activation)
    reason = f"{spec}, activations {'in float' if activation is None else activation}"
    return ModulePlan(weighted, weights, activation, reason)


def _activation(weighted: WeightedModule, wanted: Quantization) -> QuantSpec | None:
    if wanted.when == "never":
        return None
    spec = wanted.spec(_ACTIVATION)
    able = spec.format.name == "int8" or (spec.format.name == "int16" and spec.symmetric)
    able = able and spec.granularity.kind in ("token", "tensor")
    if wanted.when != "dynamic" or not able:
        raise RecipeError(
            f"{weighted.name}: PyTorch cannot quantize activations as {spec} with range {wanted.range}; at run time it "
            "takes int8, or int16 symmetric, per token or tensor"
        )
    return spec


def _check(weighted: WeightedModule, spec: QuantSpec, activation: QuantSpec | None) -> None:
    if activation is None:
        return
    if not (spec.format.kind == "int" and spec.format.bits <= 8 and spec.symmetric) or spec.granularity not in (
        Granularity.channel(),
        Granularity.tensor(),
    ):
        raise RecipeError(
            f"{weighted.name}: an integer product takes symmetric integer weights of at most 8 bits, per channel or "
            f"tensor, not {spec}; leave the activations in float (`format: fp32`) for this layer"
        )


def _replacement(
    module_plan: ModulePlan, seed: int, memory: dict[tuple[int, str, bool], QuantizedWeight]
) -> nn.Module:
    weighted, activation, wanted = module_plan.weighted, module_plan.activation, module_plan.weights
    module: Any = weighted.module
    assert wanted is not None

    def solved(name: str) -> QuantizedWeight:
        tensor = module.get_parameter(name)
        # Tied weights share their codes.
        key = (id(tensor), str(wanted), weighted.transposed)
        if key not in memory:
            memory[key] = _solved(f"{module_plan.name}.{name}", tensor, wanted, seed, weighted.transposed)
        return memory[key]

    if weighted.op == "linear":
        return QuantizedLinear(solved("weight"), module.bias, activation, weighted.transposed)
    if weighted.op == "embedding":
        return QuantizedEmbedding(module, solved("weight"))
    if weighted.op in RECURRENT:
        parts = list(_directions(module))
        weights = [[solved(n) for n in names] for names, _ in parts]
        return QuantizedRecurrent(module, weights, [biases for _, biases in parts], activation, recurrent_kernel)
    if weighted.op in CELLS:
        mode = {"lstm_cell": "LSTM", "gru_cell": "GRU"}.get(weighted.op) or f"RNN_{module.nonlinearity.upper()}"
        biases = [module.bias_ih, module.bias_hh] if module.bias else []
        return QuantizedCell(mode, module, [solved("weight_ih"), solved("weight_hh")], biases, activation)
    return WeightOnly(module, solved("weight"))


def _directions(module: Any) -> Iterator[tuple[list[str], list[Tensor]]]:
    """The weight names and the biases of every layer and direction."""
    for k in range(module.num_layers):
        for suffix in ("", "_reverse")[: 2 if module.bidirectional else 1]:
            tail = f"l{k}{suffix}"
            names = [f"weight_{kind}_{tail}" for kind in ("ih", "hh") + (("hr",) if module.proj_size else ())]
            biases = [getattr(module, f"bias_{kind}_{tail}") for kind in ("ih", "hh")] if module.bias else []
            yield names, biases


def _solved(name: str, tensor: Tensor, wanted: Quantization, seed: int, transposed: bool) -> QuantizedWeight:
    weight = tensor.detach().t() if transposed else tensor.detach()
    spec, choice = wanted.spec(_WEIGHT), wanted.choice(seed)
    chunks = _chunks(weight, spec) if choice.by_row else [weight]
    answers = (ask(LayerProblem(name, rows.float().contiguous(), spec), choice) for rows in chunks)
    parts = [a.qtensor for a in answers if a.qtensor is not None]
    if len(parts) == 1:
        return QuantizedWeight(parts[0], tensor.dtype)
    codes, scale, zero_point = (torch.cat([getattr(p, f) for p in parts]) for f in ("codes", "scale", "zero_point"))
    return QuantizedWeight(QTensor(codes, scale, zero_point, spec), tensor.dtype)


def _chunks(weight: Tensor, spec: QuantSpec) -> Sequence[Tensor]:
    """Chunks of rows if each row has its own scales, so that intermediates stay in the cache; else the whole weight."""
    alone = spec.granularity.scale_shape(weight.shape)[0] == len(weight) and spec.rounding == "nearest"
    return weight.split(max(1, _CHUNK * len(weight) // weight.numel())) if alone and weight.numel() else [weight]
