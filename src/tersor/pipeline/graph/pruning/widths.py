"""What a network loses with each width, measured, so that widths and branches can compete for one target.

The losses of scores are quadratic: they grow with the squared error of a layer, and know nothing of what a network
does with errors that many positions share, or of classes it is sure of. So each offer's curve is scaled by what was
measured at a few of its widths, the layers behind repaired.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tersor.network.groups import Group
from tersor.network.network import Network
from tersor.pipeline.graph.batches import Batch
from tersor.pipeline.graph.pruning.facts import Facts
from tersor.pipeline.graph.pruning.selection import Offer
from tersor.pipeline.graph.pruning.trials import Trial, losses

TRIED, DAMPING, LEAST = 3, 1e-3, 1e-9


def measured(
    offers: Sequence[Offer], groups: Sequence[Group], facts: Facts, dense: Network, batches: list[Batch]
) -> list[Offer]:
    """The offers with losses that were measured at some counts, and scaled between.

    Args:
        groups: of each offer, as the present network has it.
        facts: of the present network, with the moments of its layers' inputs.
        dense: whose outputs shall be kept.
    """
    rated = (not any(atom in facts.unseen for atom in group.atoms.tolist()) for group in groups)
    tried = [_tried(offer.counts) if all_seen else [] for offer, all_seen in zip(offers, rated, strict=True)]

    def trials() -> Iterator[Trial]:
        for offer, group, counts in zip(offers, groups, tried, strict=True):
            yield from (without(facts, group, offer.first(count)) for count in counts)

    found = iter(losses(dense, facts.structure.network, trials(), batches))
    return [
        replace(offer, loss=scaled(offer.counts, offer.loss, {count: next(found) for count in counts}))
        for offer, counts in zip(offers, tried, strict=True)
    ]


def without(facts: Facts, group: Group, atoms: Sequence[int]) -> Trial:
    """Some atoms of a group gone from what reads them, the others in their place where the inputs are known."""
    lost = torch.from_numpy(np.isin(group.atoms, atoms))
    network, tensors, values = facts.structure.network, dict[str, Tensor](), {}
    for layer, columns in facts.readers(group):
        weight = layer.matrix(network)
        left = torch.ones(weight.shape[1], dtype=torch.bool)
        left[columns[lost].flatten()] = False
        if layer.weight not in facts.grams:
            tensors[layer.weight] = layer.shaped(network, weight * left)
            continue
        gram, mean = facts.grams[layer.weight], facts.means[layer.weight]
        inner = gram[left][:, left]
        inner.diagonal().add_(DAMPING * inner.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny))
        other = torch.zeros_like(weight, dtype=torch.float64)
        other[:, left] = torch.linalg.solve(inner, gram[left] @ weight.double().T).T
        shift = ((weight - other) @ mean).float()
        tensors[layer.weight] = layer.shaped(network, other.to(weight.dtype))
        values[layer.node.name] = lambda y, s=shift, dim=layer.channels: (y.movedim(dim, -1) + s).movedim(-1, dim)
    return Trial(tensors, values)


def scaled(
    counts: Sequence[int], loss: NDArray[np.float64], found: dict[int, float]
) -> NDArray[np.float64]:
    """Losses by count, so scaled that they are those found at some counts; they do not fall.

    >>> scaled((0, 2, 4), np.array([0.0, 1.0, 2.0]), {2: 3.0, 4: 12.0}).tolist()
    [0.0, 3.0, 12.0]
    """
    if not found:
        return loss
    at = [list(counts).index(count) for count in found]
    ratios = [np.log(max(value, LEAST) / max(loss[k], LEAST)) for k, value in zip(at, found.values(), strict=True)]
    factors = np.exp(np.interp(range(len(counts)), at, ratios))
    made = np.maximum.accumulate(np.maximum(loss, LEAST) * factors).round(12)
    made[0] = 0.0
    return made


def _tried(counts: Sequence[int]) -> list[int]:
    """At most ``TRIED`` of the counts but 0: the first, the last, and between."""
    some = [n for n in counts if n]
    if len(some) <= TRIED:
        return some
    return [some[round(k * (len(some) - 1) / (TRIED - 1))] for k in range(TRIED)]
