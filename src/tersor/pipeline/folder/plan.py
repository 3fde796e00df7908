"""What becomes of every weight of a Hugging Face folder, before any of them is read."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from tersor.checkpoints.layouts import Layout
from tersor.errors import RecipeError, TersorError
from tersor.network.swap import weighted_modules
from tersor.numerics import QuantSpec
from tersor.pipeline.folder.metamodel import MetaModel, TensorSlice
from tersor.recipe import Quantization, Recipe
from tersor.solvers import Sparsity, joint_choice
from tersor.tables import Named, described

_DEFAULT = QuantSpec("int8", "channel")


@dataclass(frozen=True, eq=False)
class WeightPlan:
    """A weight that products read.

    Args:
        slice: its tensor in the folder, and its place in the model.
        shape: as [out, in].
        transposed: it is stored [in, out].
        wanted, spec: how it is quantized; None where it stays float.
        reason: in words.
        tail: it lies behind the blocks.
        sparsity, pruner: which of its weights become zero.
    """

    slice: TensorSlice
    shape: tuple[int, int]
    transposed: bool
    wanted: Quantization | None
    spec: QuantSpec | None
    reason: str
    tail: bool = False
    sparsity: Sparsity | None = None
    pruner: Named = ""

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
        """The parameter and expert by which a product's input is known."""
        return self.slice.parameter, self.slice.index


@dataclass(frozen=True)
class LayoutFit:
    """What a layout can hold of a model in ``dtype``."""

    layout: Layout
    dtype: torch.dtype

    def __call__(self, name: str, shape: tuple[int, int], spec: QuantSpec) -> QuantSpec:
        """The spec with the scale as it will be stored.

        Raises:
            CheckpointError: naming the layer, the value and the remedy.
        """
        spec = spec.with_(scale_dtype=self.layout.scale_dtype(self.dtype))
        self.layout.check(f"{name}.weight", shape, spec)
        return spec


def plan_weights(metamodel: MetaModel, recipe: Recipe, fits: LayoutFit) -> list[WeightPlan]:
    """Every weight of two dimensions inside the blocks, and the head; in the model's order.

    Args:
        fits: raises where the file's layout cannot hold a weight.

    Raises:
        RecipeError: a rule that matches nothing, activations that are not float, a key that is for graphs, a weight
            that does not fit.
    """
    if recipe.activations.when != "never":
        raise RecipeError(
            f"the recipe {recipe.name} quantizes activations; a folder is compressed in its weights only: use "
            "int4-gptq, int4-weight, int8-weight, or `activations: {format: fp32}`"
        )
    recipe.check_folder()
    found = list(_candidates(metamodel))
    names = [(t.name, "linear") for t in found]
    recipe = recipe.placed([name for name, _ in names])
    recipe.check_rules(names)
    return [_decided(t, recipe, fits) for t in found]


def _candidates(metamodel: MetaModel) -> Iterator[WeightPlan]:
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
            for tensor_slice in by_parameter.get(name, []):
                reason = _skip_reason(weighted.module, weighted.op, tensor_slice)
                if head and id(weighted.module.get_parameter(key)) in seen:
                    reason = "it is tied to the embedding"
                shape = metamodel.folder.entries[tensor_slice.name].shape
                if len(shape) == 2:
                    shape = (shape[1], shape[0]) if weighted.transposed else (shape[0], shape[1])
                    yield WeightPlan(tensor_slice, shape, weighted.transposed, None, None, reason, tail=head)


def _skip_reason(module: nn.Module, op: str, tensor_slice: TensorSlice) -> str:
    if not tensor_slice.whole:
        return "transformers turns or mixes it on loading"
    if op == "linear" or tensor_slice.index is not None:
        return ""
    return f"no product with it is known ({type(module).__name__})"


def _decided(plan: WeightPlan, recipe: Recipe, fits: LayoutFit) -> WeightPlan:
    def skipped(reason: str) -> WeightPlan:
        return WeightPlan(plan.slice, plan.shape, plan.transposed, None, None, reason, plan.tail)

    if plan.reason:
        return skipped(f"stays float: {plan.reason}")
    rule = recipe.rule_for(plan.name, "linear")
    if rule is not None and rule.keep is not None:
        return skipped(f"stays float: kept by the rule ({rule})")
    if plan.tail and (rule is None or rule.weights is None):
        return skipped("stays float: it decides between the tokens; a rule with `weights` of its own quantizes it")
    wanted = recipe.weights_by(rule)
    sparsity = Sparsity.parse(recipe.sparsity) if recipe.sparsity and not plan.tail else None
    # A recipe of zeros alone says nothing of the weights.
    silent = sparsity is not None and wanted.format == "auto"
    spec = None if silent or wanted.format == "fp32" else wanted.spec(_DEFAULT)
    if spec and sparsity:
        try:
            joint_choice(recipe.pruner, sparsity, wanted.solver, wanted.range)
        except RecipeError as error:
            raise RecipeError(
                f"{plan.name}: {error}; or leave its `weights` out, which then stay float"
            ) from error
    try:
        if sparsity is not None:
            sparsity.check(plan.name, plan.shape[1])
        spec = spec and fits(plan.name, plan.shape, spec)
    except TersorError as error:
        if recipe.fallback == "error":
            raise RecipeError(f"{error}; or let such layers stay float: `fallback: float` in the recipe") from error
        # The remedies are for those who asked for an error; without the name, layers alike have one reason.
        why = str(error).removeprefix("layer ").removeprefix(plan.name).removeprefix(".weight").removeprefix(":")
        return skipped(f"stays float by `fallback: float`: {why.split(': ')[0].split('; ')[0].strip()}")
    if spec is None and sparsity is None:
        return skipped("stays float: the recipe asks for it")
    how = [] if sparsity is None else [f"{sparsity} zeros, {described(recipe.pruner)}"]
    how += [f"{spec}, {described(wanted.solver)}"] if spec else ["the rest float"]
    return replace(
        plan, wanted=wanted, spec=spec, reason=", ".join(how), sparsity=sparsity, pruner=recipe.pruner
    )  # fmt: skip
