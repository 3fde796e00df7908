"""The prunable weights of an eager model, and the statistics that second-order pruning needs."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.errors import CalibrationError, RecipeError
from tersor.network.swap import WeightedModule, weighted_modules
from tersor.numerics import QuantSpec
from tersor.observers.gram import Gram
from tersor.recipe import Quantize, Rule, decide, with_names
from tersor.solvers import Geometry, LayerProblem
from tersor.solvers.fisher import blocks_of
from tersor.solvers.patches import gram_of
from tersor.task import batch_size
from tersor.task.calibration import mask_of
from tersor.user_code import users

Call = Callable[[nn.Module, Any], Any]
_OPS = ("linear", "conv1d", "conv2d", "conv3d")
_FLOAT = QuantSpec("fp32")
# Number of samples whose gradients are in memory at once.
_TOGETHER = 16


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight of a model, in the solvers' layout: outputs first."""

    weighted: WeightedModule

    @property
    def name(self) -> str:
        """The module's dotted name."""
        return self.weighted.name

    @property
    def parameter(self) -> nn.Parameter:
        """The weight as stored in the module."""
        return self.weighted.module.get_parameter("weight")

    @property
    def weight(self) -> Float[Tensor, "..."]:
        """[out, in/groups, *kernel], detached."""
        weight = self.parameter.detach()
        return weight.t() if self.weighted.transposed else weight

    def put(self, weight: Float[Tensor, "..."]) -> None:
        """Overwrite the module's weight in place."""
        with torch.no_grad():
            self.parameter.copy_(weight.t() if self.weighted.transposed else weight)

    def problem(self, gram: Gram | None = None) -> LayerProblem:
        """The layer as a solver problem."""
        module, geometry = self.weighted.module, Geometry()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            padding: Any = module.padding
            geometry = Geometry(module.stride, padding, module.dilation, module.groups)
        return LayerProblem(self.name, self.weight, _FLOAT, geometry, gram=None if gram is None else gram.hessian)


def prunable(model: nn.Module, skip: Sequence[str] = ()) -> tuple[list[Layer], dict[str, str]]:
    """The weights of linear layers and convolutions, and the reasons why other layers are skipped, by name.

    Args:
        skip: names or patterns (``*.head``) of layers not to prune.

    Raises:
        RecipeError: for a pattern that matches no layer, naming the nearest.

    >>> layers, skip_reasons = prunable(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2)), ["2"])
    >>> [layer.name for layer in layers], skip_reasons
    (['1'], {'0': 'an embedding is looked up, not multiplied', '2': 'skipped'})
    """
    found = weighted_modules(model)
    step = Quantize(rules=tuple(Rule(layer=pattern, keep="fp32") for pattern in skip))
    try:
        step = with_names(step, [(h.name, h.op) for h in found], [h.name for h in found])
    except RecipeError as error:
        raise RecipeError(f"skip: {error}") from error
    owners = Counter(id(t) for h in found for t in h.tensors())
    layers, skip_reasons = [], {}
    for weighted in found:
        reason = _reason(weighted, owners, step)
        if reason is None:
            layers.append(Layer(weighted))
        else:
            skip_reasons[weighted.name] = reason
    return layers, skip_reasons


def _reason(weighted: WeightedModule, owners: Counter[int], step: Quantize) -> str | None:
    if decide(weighted.name, weighted.op, step, None).keep is not None:
        return "skipped"
    if weighted.op == "embedding":
        return "an embedding is looked up, not multiplied"
    if weighted.skip_reason is not None:
        return weighted.skip_reason
    if weighted.op not in _OPS:
        return f"no pruner supports the operator {weighted.op}"
    if getattr(weighted.module, "padding_mode", "zeros") != "zeros":
        return "its padding is not zero padding"
    if any(owners[id(t)] > 1 for t in weighted.tensors()):
        return "another layer reads the same weight"
    return None


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """The statistics of one pass, by layer.

    Attributes:
        grams: the Gram matrices of the layers' inputs.
        costs: ``[out]``, mean over the samples of Σg², with g the loss's gradient at each output channel, summed over
            its positions: half of it times an error's mean square approximates the increase of the loss, as in
            K-FAC (arXiv 1503.05671). Empty without a loss.
    """

    grams: dict[str, Gram]
    costs: dict[str, Float[Tensor, " out"]]


def called(call: Call, model: nn.Module, batch: Any, number: int) -> Any:
    """The result of ``call(model, batch)``.

    Raises:
        CalibrationError: it raises, or the model does; naming the batch.
    """
    with users(f"the model or the loss on batch {number}", CalibrationError, "batches are tuples of its arguments"):
        return call(model, batch)


def observe(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Iterable[Any],
    call: Call,
    judged: bool,
    token_mask: Callable[[Any], Tensor] | None = None,
) -> LayerStatistics:
    """Run ``call(model, batch)`` on every batch; if ``judged``, it returns the loss.

    Args:
        token_mask: ``token_mask(batch)`` returns bool [batch, length], True for real positions.

    Raises:
        CalibrationError: there is no batch, a layer is never called or its inputs are not finite, or the loss is not
            finite or does not depend on a layer.
    """
    grams: dict[str, Gram] = {}
    costs: dict[str, Tensor] = {}
    samples = size = 0
    mask: Tensor | None = None

    def before(layer: Layer) -> Callable[..., None]:
        def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            gram = gram_of(layer.problem(), inputs[0].detach(), mask)
            grams[layer.name] = grams[layer.name].merged(gram) if layer.name in grams else gram

        return see

    def after(layer: Layer) -> Callable[..., None]:
        def see(gradient: Tensor) -> None:
            axis = gradient.ndim - 1 if layer.weighted.op == "linear" else 1
            square = (gradient * size).square().transpose(0, axis).flatten(1).sum(1)
            costs[layer.name] = costs.get(layer.name, torch.zeros_like(square)) + square

        def listen(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            output.register_hook(see)

        return listen

    hooks = [layer.weighted.module.register_forward_pre_hook(before(layer)) for layer in layers]
    if judged:
        hooks += [layer.weighted.module.register_forward_hook(after(layer)) for layer in layers]
    try:
        with _tracked(layers, judged) as weights:
            for count, batch in enumerate(batches):
                size = batch_size(tuple(pytree.tree_leaves(batch)))
                mask = None if token_mask is None else mask_of(token_mask, (batch,), size)
                value = called(call, model, batch, count)
                samples += size
                if judged:
                    torch.autograd.grad(_finite(value, samples), weights, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    _complete(layers, grams, "was not called on any batch")
    if judged:
        _complete(layers, {n: c for n, c in costs.items() if bool(c.any())}, "does not change the loss")
    return LayerStatistics(grams, {name: cost / samples for name, cost in costs.items()})


def fishers(
    model: nn.Module, layers: Sequence[Layer], batches: Iterable[Any], loss: Call, size: int, samples: int
) -> dict[str, Float[Tensor, "blocks size size"]]:
    """mean(g·gᵀ) of the per-sample gradients of the first ``samples`` samples, in blocks of ``size`` weights.

    Raises:
        CalibrationError: there is no batch, or a loss is not finite.
    """
    found: dict[str, Gram] = {}
    kept: list[list[Tensor]] = []

    def take() -> None:
        for layer, gradients in zip(layers, zip(*kept, strict=True), strict=True):
            gram = Gram.of(blocks_of(torch.stack(gradients).flatten(1), size))
            found[layer.name] = found[layer.name].merged(gram) if layer.name in found else gram
        kept.clear()

    with _tracked(layers, True) as weights:
        for number, sample in enumerate(_singly(batches, samples)):
            value = _finite(called(loss, model, sample, number), number)
            gradients = torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)
            kept.append([g.t() if layer.weighted.transposed else g for g, layer in zip(gradients, layers, strict=True)])
            if len(kept) == _TOGETHER:
                take()
    if kept:
        take()
    _complete(layers, found, "was not called on any batch")
    return {name: gram.hessian / 2 for name, gram in found.items()}


def _singly(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    for batch in batches:
        for k in range(batch_size(tuple(pytree.tree_leaves(batch)))):
            if samples == 0:
                return
            yield pytree.tree_map_only(Tensor, lambda x, k=k: x[k : k + 1] if x.ndim else x, batch)
            samples -= 1


@contextmanager
def _tracked(layers: Sequence[Layer], wanted: bool) -> Iterator[list[nn.Parameter]]:
    """The weights, with gradients if ``wanted`` even for frozen ones."""
    weights = [layer.parameter for layer in layers]
    flags = [w.requires_grad for w in weights]
    try:
        for w in weights:
            w.requires_grad_(wanted or w.requires_grad)
        with torch.set_grad_enabled(wanted):
            yield weights
    finally:
        for w, flag in zip(weights, flags, strict=True):
            w.requires_grad_(flag)


def _finite(value: Any, number: int) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not bool(torch.isfinite(value)):
        shown = value.tolist() if isinstance(value, Tensor) and value.numel() == 1 else type(value).__name__
        raise CalibrationError(
            f"loss(model, batch) gave {shown} at sample {number}; it must be one finite number, the mean over the "
            "samples of the batch"
        )
    return value.reshape(())


def _complete(layers: Sequence[Layer], found: dict[str, Any], what: str) -> None:
    missing = [layer.name for layer in layers if layer.name not in found]
    if missing:
        raise CalibrationError(
            f"layer {missing[0]} {what} ({len(missing)} of {len(layers)} layers): give batches that reach it, or "
            f"skip=({missing[0]!r},)"
        )
