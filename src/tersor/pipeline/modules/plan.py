"""What happens to each module of an eager model, and why."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from tersor.errors import RecipeError
from tersor.network.swap import CONVOLUTIONS, WeightedModule, weighted_modules
from tersor.numerics import Granularity, QuantSpec
from tersor.recipe import Quantization, Quantize, decide, with_names
from tersor.terminal import Shown
from tersor.words import said

WEIGHT = QuantSpec("int8", "channel")
_ACTIVATION = QuantSpec("int8", "token", symmetric=False)


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


def module_plans(model: nn.Module, step: Quantize, recipe: str) -> ModulePlans:
    """The plan of every module with weights; of a student, what its training layers were made for.

    Raises:
        RecipeError: a recipe that needs calibration, or a rule that matches no layer.
    """
    if step.activations.when == "static":
        raise RecipeError(
            f"the recipe {recipe} calibrates its activations: use tersor.compress, or a recipe whose "
            "activations have `range: dynamic` or `format: fp32`"
        )
    found = weighted_modules(model)
    if any(weighted.quantizers for weighted in found):
        plan = [_trained(weighted) for weighted in found]
    else:
        step = with_names(step, [(h.name, h.op) for h in found], [h.name for h in found])
        plan = [_planned(weighted, step) for weighted in found]
    unquantized = {id(t): e for e in plan if e.weights is None for t in e.weighted.tensors()}
    return ModulePlans(_with_ties(e, unquantized) for e in plan)


def chosen_plans(model: nn.Module, plan: ModulePlans, recipe: str) -> list[ModulePlan]:
    """The plans of the modules that are quantized.

    Raises:
        RecipeError: there is none, or a training layer is not among them.
    """
    chosen = [e for e in plan if e.weights is not None]
    if lost := next((e for e in plan if e.weights is None and e.weighted.quantizers), None):
        raise RecipeError(f"{lost.name} was trained with its quantization, and cannot be quantized: {lost.reason}")
    if not chosen:
        why = "; ".join(map(str, plan[:3])) or "it has no layer with weights"
        raise RecipeError(f"nothing in this {type(model).__name__} can be quantized by {recipe}: {why}")
    return chosen


def _with_ties(module_plan: ModulePlan, unquantized: dict[int, ModulePlan]) -> ModulePlan:
    tied = next((unquantized[id(t)] for t in module_plan.weighted.tensors() if id(t) in unquantized), None)
    if module_plan.weights is None or tied is None:
        return module_plan
    reason = said("stays float: tied to {name}, which stays float", name=tied.name)
    return ModulePlan(module_plan.weighted, None, None, reason)


def _trained(weighted: WeightedModule) -> ModulePlan:
    if weighted.skip_reason:
        return ModulePlan(weighted, None, None, said("not quantized: {reason}", reason=weighted.skip_reason))
    if not weighted.quantizers:
        return ModulePlan(weighted, None, None, said("stays float: it was not trained with quantization"))
    layer: Any = weighted.module
    spec = next(iter(weighted.quantizers.values())).spec
    weights = Quantization(
        format=spec.format.name, granularity=str(spec.granularity), symmetric=spec.symmetric, rounding=spec.rounding
    )
    return ModulePlan(weighted, weights, layer.activation, _reason(spec, layer.activation))


def _planned(weighted: WeightedModule, step: Quantize) -> ModulePlan:
    if weighted.skip_reason:
        return ModulePlan(weighted, None, None, said("not quantized: {reason}", reason=weighted.skip_reason))
    found = decide(weighted.name, weighted.op, step, WEIGHT)
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
    spec = weights.spec(WEIGHT)
    _check(weighted, spec, activation)
    return ModulePlan(weighted, weights, activation, _reason(spec, activation))


def _reason(spec: QuantSpec, activation: QuantSpec | None) -> str:
    return f"{spec}, activations {'in float' if activation is None else activation}"


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
