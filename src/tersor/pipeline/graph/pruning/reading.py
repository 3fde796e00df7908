"""What scores of single weights read of a network: gradients of drawn predictions, and inputs of layers."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import cross_entropy

from tersor.errors import CalibrationError, RecipeError
from tersor.network.network import CONVOLUTIONS, Network, groups_of, walk
from tersor.pipeline.graph.batches import Batch
from tersor.pipeline.graph.observing.grams import layer_problem
from tersor.pipeline.graph.pruning.padding import part_of, real, real_tokens
from tersor.pipeline.graph.pruning.prunable import Weight
from tersor.solvers.patches import patches
from tersor.solvers.weights import Curvature
from tersor.task import batch_size

TOGETHER = 16
"""Samples whose gradients are added at once."""
MEMORY = 8e9
_ROWS = 2**14


def curvature(
    network: Network, weights: Collection[str], batches: list[Batch], found: Curvature, seed: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Curvature:
    """``found`` with the gradients of every sample: their second moment is the Fisher matrix of the network.

    The loss is that of a prediction drawn from the network itself, so no labels are needed; outputs that are no scores
    of classes count as means of a normal distribution. A network with a fixed batch gives one gradient per batch.

    Raises:
        RecipeError: the blocks would not fit into memory, or no output depends on the weights.
        CalibrationError: the network returns NaN or infinity.
    """
    needed = sum(network.tensor(name).numel() for name in weights) * found.size * 4
    if "blocks" in found.needs and needed > MEMORY:
        raise RecipeError(
            f"the Fisher matrix in blocks of {found.size} takes {needed / 1e9:.1f} GB: ask for smaller blocks, such as "
            f"`score: {{obs: {{block: {max(1, int(found.size * MEMORY / needed))}}}}}`"
        )
    generator = torch.Generator().manual_seed(seed)
    leaves = {name: network.tensor(name).detach().clone().requires_grad_() for name in weights}
    for batch in batches:
        gathered: dict[str, list[Tensor]] = {}
        for sample in _samples(batch, network.dynamic_batch):
            out = walk(network, sample, tensors=leaves, gradients=True)
            floats = [t for t in out if isinstance(t, Tensor) and t.is_floating_point()]
            loss = drawn_loss([real_tokens(sample, t) for t in floats], generator)
            if not loss.requires_grad:
                raise RecipeError(
                    "the network returns no floating-point values that its weights decide, so there are no gradients "
                    "to score by; take the score magnitude or wanda"
                )
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for name, gradient in zip(leaves, gradients, strict=True):
                gathered.setdefault(name, []).append(
                    torch.zeros_like(leaves[name]) if gradient is None else gradient.detach()
                )
            if len(next(iter(gathered.values()))) == TOGETHER:
                _add(found, gathered)
        _add(found, gathered)
        on_batch()
    return found


def _add(found: Curvature, gathered: dict[str, list[Tensor]]) -> None:
    for name, gradients in gathered.items():
        found.add(name, torch.stack(gradients))
    gathered.clear()


def _samples(batch: Batch, dynamic: bool) -> Iterator[Batch]:
    """Each sample as a batch of its own; the whole batch if its size is fixed."""
    if not dynamic:
        yield batch
        return
    for k in range(batch_size(batch)):
        yield part_of(batch, k, k + 1)


def drawn_loss(outputs: list[Tensor], generator: torch.Generator) -> Tensor:
    """A loss whose gradient g has mean(g·gᵀ) = the Fisher matrix.

    A class is drawn half by its probability and half evenly, and weighted by the root of p over the probability of the
    draw: surprising classes, whose gradients are large, are then not left to rare luck.

    >>> scores = torch.tensor([[2.0, 0.0]], requires_grad=True)
    >>> drawn_loss([scores], torch.Generator().manual_seed(0)).shape
    torch.Size([])
    """
    total = torch.zeros(())
    for out in outputs:
        if not out.isfinite().all():
            raise CalibrationError(
                "the network returns values on the calibration data that are NaN or infinite: look for bad samples, or "
                "for an operator such as a logarithm that they take out of its range"
            )
        if out.ndim == 2 and out.shape[1] > 1:
            p = out.detach().softmax(1)
            q = (p + 1 / p.shape[1]) / 2
            drawn = torch.multinomial(q, 1, generator=generator)
            factor = (p / q).gather(1, drawn).sqrt()[:, 0]
            total = total + (cross_entropy(out, drawn[:, 0], reduction="none") * factor).sum()
        else:
            noise = torch.randn(out.shape, generator=generator)
            spread = float(out.detach().std(correction=0))
            total = total + (out * noise).sum() / (spread or 1.0)
    return total


def input_norms(
    network: Network, weights: Mapping[str, Weight], batches: list[Batch],
    on_batch: Callable[[], None] = lambda: None, seed: int = 0,
) -> dict[str, Tensor]:
    """The root mean square of what each weight is multiplied by, of convolutions and linear layers."""
    readers: dict[str, list[Weight]] = {}
    for weight in weights.values():
        if weight.source is not None:
            readers.setdefault(weight.source.name, []).append(weight)
    sums, counts = dict[str, Tensor](), dict[str, int]()

    def see(node: fx.Node, value: Any) -> None:
        for weight in readers.get(node.name, ()):
            if weight.node.target not in CONVOLUTIONS:
                value = value.reshape(-1, value.shape[-1])[real(reading, value)]
            squares, count = _squares(network, weight, value, seed)
            sums[weight.name] = sums.get(weight.name, torch.zeros(())) + squares
            counts[weight.name] = counts.get(weight.name, 0) + count

    for reading in batches:
        walk(network, reading, see)
        on_batch()
    found = {name: (total / max(1, counts[name])).sqrt() for name, total in sums.items()}
    if bad := next((n for n, value in found.items() if not value.isfinite().all()), None):
        raise CalibrationError(
            f"{weights[bad].layer}: its inputs on the calibration data are NaN or infinite: look for bad samples"
        )
    return found


def _squares(network: Network, weight: Weight, x: Tensor, seed: int) -> tuple[Tensor, int]:
    """The sum of squares of what each weight is multiplied by, broadcastable to it, and the number of rows."""
    shape = network.tensor(weight.name).shape
    if weight.inputs == 0:
        rows = x.reshape(-1, x.shape[-1]).float()
        return rows.square().sum(0)[:, None], len(rows)
    problem = replace(layer_problem(network, weight.node), sample=x)
    rows = patches(problem, _ROWS, seed)
    groups = groups_of(weight.node) if weight.node.target in CONVOLUTIONS else 1
    squares = rows.square().sum(1).repeat_interleave(shape[0] // groups, 0)
    return squares.reshape(shape), rows.shape[1]
