"""The plan for every weight of a Hugging Face folder, before any of them is read."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import torch

from tersor.checkpoints.layouts import Layout
from tersor.errors import RecipeError
from tersor.network.swap import WeightedModule, weighted_modules
from tersor.numerics import QuantSpec
from tersor.pipeline.folder.host import FOLDER
from tersor.pipeline.folder.metamodel import MetaModel, TensorSlice
from tersor.recipe import Decision, Prune, Quantization, Quantize, Recipe, decide, with_names
from tersor.solvers import Sparsity
from tersor.tables import Named
from tersor.terminal import Shown
from tersor.words import said

_DEFAULT = QuantSpec("int8", "channel")
FLOAT = Quantize(weights=Quantization(format="fp32"), activations=Quantization(format="fp32"), bias_correction=False)
"""The step `quantize` that leaves all as it is, for recipes that only prune."""
_FORMATS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True, eq=False)
class WeightPlan:
    """A weight that products read.

    Args:
        slice: its tensor in the folder, and its place in the model.
        dtype: that of the tensor in the folder.
        shape: as [out, in]; for a skipped weight that is not a matrix, as it is stored.
        transposed: it is stored [in, out].
        wanted, spec: how it is quantized; None if it stays float.
        reason: in words.
        tail: it comes after the blocks.
        sparsity, pruner: which of its weights become zero.
        expert: it belongs to one of several experts, which not every token reaches.
    """

    slice: TensorSlice
    dtype: torch.dtype
    shape: tuple[int, ...]
    transposed: bool
    wanted: Quantization | None
    spec: QuantSpec | None
    reason: str
    tail: bool = False
    sparsity: Sparsity | None = None
    pruner: Named = ""
    expert: bool = False

    @property
    def touched(self) -> bool:
        """Whether anything happens to it."""
        return self.spec is not None or self.sparsity is not None

    @property
    def name(self) -> str:
        """The layer's name in the folder, without ``.weight``."""
        return self.slice.name.removesuffix(".weight")

    @property
    def read_as(self) -> tuple[str, int | None]:
        """The parameter and expert that identify a product's input."""
        return self.slice.parameter, self.slice.index


class WeightPlans(Shown, tuple[WeightPlan, ...]):
    """The plan of a folder, in the model's order."""


@dataclass(frozen=True)
class LayoutFit:
    """What a layout can store of a model in ``dtype``."""

    layout: Layout
    dtype: torch.dtype

    def __call__(self, name: str, shape: tuple[int, ...], spec: QuantSpec) -> QuantSpec:
        """The spec with the scale as it will be stored.

        Raises:
            CheckpointError: naming the layer, the value and the remedy.
        """
        spec = spec.with_(scale_dtype=self.layout.scale_dtype(self.dtype))
        self.layout.check(f"{name}.weight", shape, spec)
        return spec


def plan_weights(metamodel: MetaModel, recipe: Recipe, fits: LayoutFit) -> list[WeightPlan]:
    """Every weight of two or more dimensions that the folder stores, in the model's order.

    Matrices inside the blocks and the head are compressed; for all others the plan says why they are not.

    Args:
        fits: raises if the file's layout cannot store a weight.

    Raises:
        RecipeError: a rule that matches nothing, activations that are not float, a key that is for graphs, a weight
            that does not fit, experts of one layer that differ.
    """
    step = quantize_step(recipe)
    check_recipe(recipe)
    found = list(_candidates(metamodel))
    names = [(t.name, "linear") for t in found]
    left = list(_left(metamodel, {t.slice.name for t in found}))
    _check_rules(step, names, left)
    step = with_names(step, [*names, *((t.name, "left") for t in left)], [name for name, _ in names])
    plans = [_decided(t, step, fits) for t in found]
    _check_experts(plans, fits.layout.fused_experts_alike)
    order = {name: k for k, name in enumerate([*metamodel.slices, *metamodel.unused])}
    return sorted([*plans, *left], key=lambda t: order[t.slice.name])


def quantize_step(recipe: Recipe) -> Quantize:
    """The step `quantize`; one that leaves all in float, if the recipe only prunes."""
    prunes = any(isinstance(step, Prune) for step in recipe.steps)
    found = next((step for step in recipe.steps if isinstance(step, Quantize)), FLOAT if prunes else None)
    return recipe.quantize if found is None else found


def check_recipe(recipe: Recipe) -> None:
    """Reject a recipe that quantizes activations or has options that are not for folders; raises RecipeError."""
    if quantize_step(recipe).activations.when != "never":
        raise RecipeError(
            f"the recipe {recipe.name} quantizes activations; a folder is compressed in its weights only: use "
            "int4-gptq, int4-weight, int8-weight, or `activations: {format: fp32}`"
        )
    FOLDER.check(recipe)


def _check_rules(step: Quantize, names: Sequence[tuple[str, str]], left: Sequence[WeightPlan]) -> None:
    """Reject a rule that changes only weights that cannot be compressed, with the reason."""
    for rule in step.rules:
        only = [t for t in left if rule.layer and rule.matches(t.name, "left")]
        if rule.keep is None and only and not any(rule.matches(*name) for name in names):
            raise RecipeError(f"rule ({rule}) matches {only[0].name}, which {only[0].reason}: leave the rule out")


def _check_experts(plans: Sequence[WeightPlan], fused_as_one: bool) -> None:
    """Check that experts that transformers fuses into one tensor are all quantized with one spec, or not at all.

    Args:
        fused_as_one: transformers opens the layout only if the experts of all layers are quantized with one spec.
    """
    firsts: dict[str, WeightPlan] = {}
    for plan in [p for p in plans if p.slice.index is not None]:
        first = firsts.setdefault("" if fused_as_one else plan.slice.parameter, plan)
        if first.spec != plan.spec:
            where = "tensors that it reads with one format for all layers" if fused_as_one else plan.slice.parameter
            raise RecipeError(
                f"{plan.name} ({plan.reason}) and {first.name} ({first.reason}) differ, but transformers fuses experts "
                f"into {where}, whose experts are quantized alike or not at all: let rules match all experts, such as "
                f"*.{plan.slice.parameter.split('.')[-2]}.*"
            )
    quantized = next((p for p in plans if p.spec), None)
    if fused_as_one and quantized and "" in firsts and firsts[""].spec is None:
        raise RecipeError(
            f"{firsts[''].name} {firsts[''].reason}, and {quantized.name} is quantized, but transformers opens this "
            "layout only if the experts, which it fuses, are quantized too: quantize them, or choose another layout"
        )


def _candidates(metamodel: MetaModel) -> Iterator[WeightPlan]:
    """The matrices inside the blocks, and the head."""
    inside = metamodel.blocks.path + "."
    by_parameter: dict[str, list[TensorSlice]] = {}
    for tensor_slice in metamodel.slices.values():
        by_parameter.setdefault(tensor_slice.parameter, []).append(tensor_slice)
    seen = set[int]()
    logits = getattr(metamodel.model, "get_output_embeddings", lambda: None)()
    for weighted in weighted_modules(metamodel.model):
        for key in weighted.weights:
            name = f"{weighted.name}.{key}"
            head = not name.startswith(inside)
            if weighted.op == "embedding" or (head and weighted.module is not logits):
                seen.add(id(weighted.module.get_parameter(key)))
                continue
            expert = metamodel.experts.hold(name)
            for tensor_slice in by_parameter.get(name, []):
                reason = _skip_reason(metamodel, weighted, tensor_slice)
                if head and id(weighted.module.get_parameter(key)) in seen:
                    reason = said("it is tied to the embedding")
                entry = metamodel.folder.entries[tensor_slice.name]
                shape = entry.shape
                if len(shape) == 2:
                    shape = (shape[1], shape[0]) if weighted.transposed else (shape[0], shape[1])
                    yield WeightPlan(
                        tensor_slice, entry.dtype, shape, weighted.transposed, None, None, reason, head, expert=expert
                    )


def _skip_reason(metamodel: MetaModel, weighted: WeightedModule, tensor_slice: TensorSlice) -> str:
    if not tensor_slice.whole:
        return said("transformers turns or mixes it on loading")
    if tensor_slice.parameter in metamodel.experts.routers:
        return said("it is a router, which chooses between experts")
    if tensor_slice.index is not None:
        return ""
    return "" if weighted.op == "linear" else said(
        "no product with it is known ({kind})",
        kind=type(weighted.module).__name__,
    )


def _left(metamodel: MetaModel, planned: Set[str]) -> Iterator[WeightPlan]:
    """The other tensors of two or more dimensions, which are copied as they are."""
    ops = {f"{m.name}.{key}": m.op for m in weighted_modules(metamodel.model) for key in m.weights}
    for name, entry in metamodel.folder.entries.items():
        if len(entry.shape) < 2 or name in planned or not entry.dtype.is_floating_point:
            continue
        tensor_slice = metamodel.slices.get(name) or TensorSlice(name, "")
        reason = said("stays float: {reason}", reason=_left_reason(metamodel, tensor_slice, entry.shape, ops))
        yield WeightPlan(tensor_slice, entry.dtype, entry.shape, False, None, None, reason)


def _left_reason(metamodel: MetaModel, place: TensorSlice, shape: tuple[int, ...], ops: Mapping[str, str]) -> str:
    op = ops.get(place.parameter, "")
    if not place.parameter:
        return said("{kind} has no place for it", kind=type(metamodel.model).__name__)
    if op == "embedding":
        return said("rows of an embedding are looked up, not multiplied")
    if not place.parameter.startswith(metamodel.blocks.path + "."):
        return said("it lies outside the blocks that are compressed ({path})", path=metamodel.blocks.path)
    if len(shape) > 2:
        dimensions = " x ".join(map(str, shape))
        if metamodel.experts.hold(place.parameter):
            return said("the experts are one tensor of {shape}, and layouts of folders hold matrices", shape=dimensions)
        return said("it is one tensor of {shape}, and layouts of folders hold matrices", shape=dimensions)
    return said("no product with it is known")


def _decided(plan: WeightPlan, step: Quantize, fits: LayoutFit) -> WeightPlan:
    def skipped(reason: str) -> WeightPlan:
        return replace(plan, reason=reason)

    def fit(spec: QuantSpec | None, sparsity: Sparsity | None) -> QuantSpec | None:
        if sparsity is not None:
            sparsity.check(plan.name, plan.shape[1])
        return spec and fits(plan.name, plan.shape, spec)

    default, fit_or_none = (None, None) if plan.reason else (_DEFAULT, fit)
    found = decide(plan.name, "linear", step, default, fit_or_none, opt_in=plan.tail)
    if found.keep is not None:
        return skipped(_kept(plan, found))
    if plan.reason:
        return skipped(said("stays float: {reason}", reason=plan.reason))
    if found.activations.when != "never":
        rules = " and ".join(f"the rule ({rule})" for rule in found.rules)
        raise RecipeError(
            f"{plan.name}: `activations` of {rules} is not done to folders in the Hugging Face layout, whose weights "
            "alone are compressed; leave it out"
        )
    if plan.tail and not found.named & {"weights", "sparsity"}:
        return skipped(said(
            "stays float: it decides between the tokens; a rule with `weights` of its own quantizes it",
        ))
    if found.spec is None and found.sparsity is None:
        return skipped(found.reason)
    return replace(
        plan,
        wanted=found.weights,
        spec=found.spec,
        reason=found.reason,
        sparsity=found.sparsity,
        pruner=found.pruner,
    )


def _kept(plan: WeightPlan, found: Decision) -> str:
    """Why a kept weight stays as it is; the float weights of a folder are copied, never cast."""
    stored = _FORMATS.get(plan.dtype, str(plan.dtype).removeprefix("torch."))
    if found.keep not in ("fp32", stored):
        raise RecipeError(
            f"{plan.name}: the folder stores it in {stored} and float weights are copied as they are, so it cannot be "
            f"stored in {found.keep} ({found.reason}); `keep: fp32` leaves it as it is"
        )
    return said("stays {format}: {reason}", format=stored, reason=found.reason)
