"""What becomes of every weight of a Hugging Face folder, before any of them is read."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from tersor.checkpoints.layouts import Layout
from tersor.errors import RecipeError, TersorError
from tersor.network.swap import holders
from tersor.numerics import QuantSpec
from tersor.pipeline.skeleton import Piece, Skeleton
from tersor.recipe import Quantization, Recipe
from tersor.solvers import Sparsity

_DEFAULT = QuantSpec("int8", "channel")


@dataclass(frozen=True, eq=False)
class Target:
    """A weight that products read.

    Args:
        piece: its tensor in the folder, and its place in the model.
        shape: as [out, in].
        transposed: it is stored [in, out].
        wanted, spec: how it is quantized; None where it stays float.
        reason: in words.
        tail: it lies behind the blocks.
        sparsity, pruner: which of its weights become zero.
    """

    piece: Piece
    shape: tuple[int, int]
    transposed: bool
    wanted: Quantization | None
    spec: QuantSpec | None
    reason: str
    tail: bool = False
    sparsity: Sparsity | None = None
    pruner: str = ""

    @property
    def touched(self) -> bool:
        """Whether anything happens to it."""
        return self.spec is not None or self.sparsity is not None

    @property
    def name(self) -> str:
        """The layer's name in the folder, without ``.weight``."""
        return self.piece.name.removesuffix(".weight")

    @property
    def read_as(self) -> tuple[str, int | None]:
        """The parameter and expert by which a product's input is known."""
        return self.piece.parameter, self.piece.index


@dataclass(frozen=True)
class Held:
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


def plan(skeleton: Skeleton, recipe: Recipe, fits: Held) -> list[Target]:
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
    found = list(_candidates(skeleton))
    names = [(t.name, "linear") for t in found]
    recipe = recipe.placed([name for name, _ in names])
    recipe.check_rules(names)
    return [_decided(t, recipe, fits) for t in found]


def _candidates(skeleton: Skeleton) -> Iterator[Target]:
    inside = skeleton.blocks.path + "."
    by_parameter: dict[str, list[Piece]] = {}
    for piece in skeleton.pieces.values():
        by_parameter.setdefault(piece.parameter, []).append(piece)
    seen = set[int]()
    logits = getattr(skeleton.model, "get_output_embeddings", lambda: None)()
    for holder in holders(skeleton.model):
        for key in holder.weights:
            name = f"{holder.name}.{key}"
            head = not name.startswith(inside)
            if holder.op == "embedding" or (head and holder.module is not logits):
                seen.add(id(holder.module.get_parameter(key)))
                continue
            for piece in by_parameter.get(name, []):
                reason = _left(holder.module, holder.op, piece)
                if head and id(holder.module.get_parameter(key)) in seen:
                    reason = "it is tied to the embedding"
                shape = skeleton.folder.entries[piece.name].shape
                if len(shape) == 2:
                    shape = (shape[1], shape[0]) if holder.transposed else (shape[0], shape[1])
                    yield Target(piece, shape, holder.transposed, None, None, reason, tail=head)


def _left(module: nn.Module, op: str, piece: Piece) -> str:
    if not piece.whole:
        return "transformers turns or mixes it on loading"
    if op == "linear" or piece.index is not None:
        return ""
    return f"no product with it is known ({type(module).__name__})"


def _decided(target: Target, recipe: Recipe, fits: Held) -> Target:
    def left(reason: str) -> Target:
        return Target(target.piece, target.shape, target.transposed, None, None, reason, target.tail)

    if target.reason:
        return left(f"stays float: {target.reason}")
    rule = recipe.rule_for(target.name, "linear")
    if rule is not None and rule.keep is not None:
        return left(f"stays float: kept by the rule ({rule})")
    if target.tail and (rule is None or rule.weights is None):
        return left("stays float: it decides between the tokens; a rule with `weights` of its own quantizes it")
    wanted = recipe.weights_by(rule)
    sparsity = Sparsity.parse(recipe.sparsity) if recipe.sparsity and not target.tail else None
    # A recipe of zeros alone says nothing of the weights.
    silent = sparsity is not None and wanted.format == "auto"
    spec = None if silent or wanted.format == "fp32" else wanted.spec(_DEFAULT)
    if spec and sparsity and (recipe.pruner != "sparsegpt" or wanted.solver != "gptq"):
        raise RecipeError(
            f"{target.name}: sparse and quantized at once are the pruner sparsegpt and the solver gptq, in one sweep, "
            f"not {recipe.pruner} and {wanted.solver}; else leave its `weights` out, which then stay float"
        )
    try:
        if sparsity is not None:
            sparsity.check(target.name, target.shape[1])
        spec = spec and fits(target.name, target.shape, spec)
    except TersorError as error:
        if recipe.fallback == "error":
            raise RecipeError(f"{error}; or let such layers stay float: `fallback: float` in the recipe") from error
        # The remedies are for those who asked for an error; without the name, layers alike have one reason.
        why = str(error).removeprefix("layer ").removeprefix(target.name).removeprefix(".weight").removeprefix(":")
        return left(f"stays float by `fallback: float`: {why.split(': ')[0].split('; ')[0].strip()}")
    if spec is None and sparsity is None:
        return left("stays float: the recipe asks for it")
    how = [] if sparsity is None else [f"{sparsity} zeros, {recipe.pruner}"]
    how += [f"{spec}, {wanted.solver}"] if spec else ["the rest float"]
    return replace(
        target, wanted=wanted, spec=spec, reason=", ".join(how), sparsity=sparsity, pruner=recipe.pruner
    )  # fmt: skip
