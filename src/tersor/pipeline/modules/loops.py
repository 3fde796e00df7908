"""Iterative pruning of a whole eager network: score, remove, compensate for the error, retrain, repeat."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tersor.arguments import whole
from tersor.errors import RecipeError, TaskError
from tersor.former_names import takes_former_name
from tersor.pipeline.modules.eager import Call, Layer, LayerStatistics, fishers, observe, prunable
from tersor.solvers import PRUNERS, Sparsity, allocate, ask, pruner_choice
from tersor.solvers.fisher import prune_by_fisher
from tersor.solvers.output_error import output_error
from tersor.task.calibration import Passes
from tersor.task.calibration import read as read_batches
from tersor.turns import in_turn
from tersor.user_code import users

# Block size of the Fisher matrix by method, and the number of samples for its mean (arXiv 2203.07259).
_BLOCKS = {"obd": 1, "obs": 50}
# The entry of PRUNERS for a method without a loss.
_PRUNERS = {"obs": "exactobs"}
_SAMPLES = 1024
_LEVELS = tuple(k / 40 for k in range(40))


@dataclass(frozen=True)
class PrunedRecord:
    """The result for one layer.

    Args:
        name: the layer's dotted name.
        weights: its number of weights.
        sparsity: the fraction of zero weights.
        error: power of the output error relative to the output, both with the inputs of the original model.
        method: the method, as shown in the report.
    """

    name: str
    weights: int
    sparsity: float
    error: float
    method: str


@dataclass(frozen=True, eq=False)
class PrunedModel:
    """A pruned copy of a model.

    Args:
        model: the copy, of the original's class, in eval mode.
        layers: one record for each pruned layer.
        skip_reasons: why the other layers were not pruned, by name.
    """

    model: nn.Module
    layers: tuple[PrunedRecord, ...]
    skip_reasons: Mapping[str, str]

    @property
    def left(self) -> Mapping[str, str]:
        """The former name of ``skip_reasons``."""
        return self.skip_reasons

    @property
    def sparsity(self) -> float:
        """The fraction of zeros among all weights of the pruned layers."""
        return sum(r.sparsity * r.weights for r in self.layers) / sum(r.weights for r in self.layers)


@takes_former_name("counted", "token_mask")
@in_turn
def prune_iteratively(
    model: nn.Module,
    batches: Callable[[], Iterable[Any]] | Sequence[Any],
    sparsity: str = "50%",
    method: str = "obs",
    *,
    loss: Call | None = None,
    steps: int = 1,
    retrain: Callable[[nn.Module], Any] | None = None,
    skip: Sequence[str] = (),
    token_mask: Callable[[Any], Tensor] | None = None,
) -> PrunedModel:
    """Prune a copy of a model in steps, each with statistics of the previous step's result.

    | ``method`` | without a loss: the layer's output | with a loss |
    |---|---|---|
    | ``obd`` | ½·H_jj·w² of the Gram matrix | ½·F_jj·w² of the empirical Fisher diagonal (LeCun et al., 1989) |
    | ``obs`` | ExactOBS (arXiv 2208.11580) | blocks of 50 of the empirical Fisher matrix (arXiv 2004.14340) |
    | others | a name of ``tersor.solvers.PRUNERS`` | the same, an output's error weighted by its effect on the loss |

    A fraction of all weights ("70%") is distributed over the layers: by one threshold if the Fisher matrix scores them,
    else by ``tersor.solvers.allocate`` over their curves, so that it is met or slightly exceeded; "70% per row" and
    "2:4" apply to each layer. The fraction of remaining weights shrinks by the same factor in every step.

    Args:
        batches: a list, or a function that returns a fresh iterable, of tuples (or dicts) of the model's arguments;
            with a loss, of batches for the loss. The first dimension of all tensors is the batch.
        loss: ``loss(model, batch)``, the mean over the samples of the batch.
        retrain: ``retrain(model)`` trains the copy in place after each step. Removed weights stay zero: their gradient
            is masked, and they are set to zero again afterwards.
        skip: names or patterns of layers not to prune.
        token_mask: ``token_mask(batch)`` returns bool [batch, length], True for real positions; padded positions are
            ignored. The former name ``counted`` is still accepted.

    Raises:
        RecipeError: an unknown method, an invalid sparsity, a pattern in ``skip`` that matches no layer, or groups that
            do not divide a layer.
        CalibrationError: naming the layer, if the data or the loss cannot be used.
        TaskError: both ``token_mask`` and ``counted`` are given.

    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> data = [(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)),)]
    >>> pruned = prune_iteratively(net, data, "50%", steps=2)
    >>> pruned.sparsity >= 0.5, [r.name for r in pruned.layers]
    (True, ['0', '2'])
    """
    asked, passes = _checked(model, method, sparsity, steps, loss), Passes()

    def read() -> Iterator[Any]:
        return read_batches(_source(batches), passes, "batches")[0]

    done = copy.deepcopy(model).eval()
    layers, skip_reasons = prunable(done, skip)
    original = {layer.name: layer.weight.clone() for layer in layers}
    by_fisher = loss is not None and method in _BLOCKS
    call = loss or _forward
    first = seen = observe(done, layers, read(), call, loss is not None, token_mask)
    methods: dict[str, str] = {}
    for step in range(1, steps + 1):
        now = asked if steps == 1 else replace(asked, share=1 - (1 - asked.share) ** (step / steps))
        if by_fisher:
            size = _BLOCKS[method]
            blocks = fishers(done, layers, read(), call, size, _SAMPLES)
            found = prune_by_fisher({layer.name: layer.weight for layer in layers}, blocks, now.share)
            methods = dict.fromkeys(found, f"{method}, Fisher blocks of {size}")
        else:
            seen = seen if step == 1 else observe(done, layers, read(), call, loss is not None, token_mask)
            found, methods = _by_layer(layers, seen, method, now)
        for layer in layers:
            layer.put(found[layer.name])
        if retrain is not None:
            with _zeros_kept(layers), users("retrain", TaskError, "call it on a copy of the model to debug it"):
                retrain(done)
            done.eval()
    records = tuple(_record(layer, original[layer.name], first, methods) for layer in layers)
    return PrunedModel(done, records, skip_reasons)


def _source(batches: Any) -> Callable[[], Any]:
    return batches if callable(batches) else lambda: batches


def _checked(model: Any, method: Any, sparsity: Any, steps: Any, loss: Call | None) -> Sparsity:
    if not isinstance(model, nn.Module):
        raise TaskError(f"the model is a {type(model).__name__}: give a torch.nn.Module")
    if not isinstance(sparsity, str):
        raise RecipeError(f"sparsity is {sparsity!r:.80}: write a text such as '50%' or '2:4'")
    whole("steps", steps, 1, None, "each step prunes a part", RecipeError)
    if loss is not None and not callable(loss):
        raise TaskError(f"loss is {loss!r:.80}: give a function loss(model, batch)")
    asked = Sparsity.parse(sparsity)
    if not isinstance(method, str) or method not in {*PRUNERS, "obs"}:
        raise RecipeError(f"method {method!r} is unknown: choose obs, {', '.join(PRUNERS)}")
    if steps > 1 and asked.group is not None:
        raise RecipeError(f"{sparsity} in {steps} steps: n:m takes exactly one step")
    if loss is not None and method in _BLOCKS and asked.pattern != "layer":
        raise RecipeError(f"{method} with a loss prunes without structure: write '70%', not {sparsity!r}")
    return asked


def _forward(model: nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def _by_layer(
    layers: Sequence[Layer], seen: LayerStatistics, method: str, asked: Sparsity
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Prune each layer with its own problem; the layers' errors count equally, or by their effect on the loss."""
    choice = pruner_choice(_PRUNERS.get(method, method), asked)
    pruner: Any = choice.by
    problems, roots, powers = {}, {}, {}
    for layer in layers:
        problem, root, power = layer.problem(seen.grams[layer.name]), torch.ones(()), 1.0
        if seen.costs:
            cost = seen.costs[layer.name]
            # Scale the rows to units of the loss; the minimum keeps rows without gradient from having no weight.
            root = cost.clamp(min=1e-3 * float(cost.mean())).sqrt().reshape(-1, *[1] * (problem.weight.ndim - 1))
            problem = replace(problem, weight=problem.weight * root)
            assert problem.gram is not None
            power = _power(problem.weight, problem.gram)
        problems[layer.name], roots[layer.name], powers[layer.name] = problem, root, power
    shares = dict.fromkeys(problems, asked)
    if asked.pattern == "layer":
        levels = sorted({*_LEVELS, asked.share})
        curves = {n: [(c, e * powers[n]) for c, e in pruner.curve(p, levels)] for n, p in problems.items()}
        wanted = round((1 - asked.share) * sum(p.weight.numel() for p in problems.values()))
        # Each layer rounds its own number of weights, so at the last level they may keep a few more than wanted.
        chosen = allocate(curves, max(wanted, sum(min(points)[0] for points in curves.values())))
        shares = {name: Sparsity(levels[k]) for name, k in chosen.items()}
    solved = {n: ask(problem, replace(choice, sparsity=shares[n])) for n, problem in problems.items()}
    weights = {n: a.weight / roots[n] for n, a in solved.items() if a.weight is not None}
    return weights, {n: a.record.method for n, a in solved.items()}


def _power(weight: Tensor, grams: Tensor) -> float:
    """tr(W·H·Wᵀ)."""
    parts = zip(weight.flatten(1).chunk(len(grams)), grams, strict=True)
    return sum(float(((w @ h) * w).sum(dtype=torch.float64)) for w, h in parts)


@contextmanager
def _zeros_kept(layers: Sequence[Layer]):
    kept = [(layer.parameter, layer.parameter.detach() != 0) for layer in layers]
    hooks = [p.register_hook(lambda g, mask=mask: g * mask) for p, mask in kept if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for parameter, mask in kept:
                parameter.mul_(mask)


def _record(layer: Layer, before: Tensor, first: LayerStatistics, methods: Mapping[str, str]) -> PrunedRecord:
    weight = layer.weight
    error = output_error(before, weight, first.grams[layer.name].hessian)
    return PrunedRecord(layer.name, weight.numel(), float((weight == 0).float().mean()), error, methods[layer.name])
