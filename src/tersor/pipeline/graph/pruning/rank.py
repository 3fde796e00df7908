"""The structure `rank`: linear layers and 1×1 convolutions become two thinner ones, where these are faster."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from tersor.errors import RecipeError
from tersor.network.groups import Group, Structure, find
from tersor.network.groups.costs import macs_of_tensors, sizes_of_tensors
from tersor.network.groups.factored import factor, factorable
from tersor.network.network import Network, finish
from tersor.network.verify import verify
from tersor.pipeline.graph.batches import Batch
from tersor.pipeline.graph.pruning.facts import Facts
from tersor.pipeline.graph.pruning.groups import Width, asked, layer_of
from tersor.pipeline.graph.pruning.rows import Layer, layers_of
from tersor.pipeline.graph.pruning.selection import Choice, Offer, reaching, uniform
from tersor.pipeline.graph.pruning.timed.stairs import Clock, beyond_noise
from tersor.recipe import Prune
from tersor.solvers.structured import SCORES
from tersor.solvers.structured.low_rank import Factors, factors
from tersor.tables import made
from tersor.words import said

EIGHTHS = (6, 4, 3, 2, 1)


@dataclass(frozen=True, eq=False)
class Thinned:
    """A network some of whose layers have become two.

    Args:
        widths: the full rank and the rank of each layer that could lose some.
        kept: layers that stayed whole, and why.
        faster: how many times as fast it was measured in the engine; None if that was not asked.
    """

    network: Network
    widths: tuple[Width, ...]
    kept: dict[str, str]
    faster: float | None


def thinned(
    step: Prune, network: Network, batches: list[Batch], seed: int, clock: Clock | None,
    advance: Callable[[], None] = lambda: None,
) -> Thinned:
    """Choose ranks for the step's target, and factor the layers.

    A rank is offered where two products cost less than one; with a clock, where the engine runs them faster, too.

    Raises:
        RecipeError: no layer can be factored, or the target cannot be reached.
    """
    layers = [x for x in layers_of(network) if factorable(x.node) and asked(step, (layer_of(x.weight),))]
    facts = _facts(step, network, layers, batches, seed, advance)
    parts = {x.weight: factors(x.matrix(network), facts.grams.get(x.weight), facts.rows.get(x.weight)) for x in layers}
    ranks, kept = _ranks(step, network, layers, parts, clock)
    offers, offered = list[Offer](), [x for x in layers if ranks[x.weight]]
    cost = sizes_of_tensors(network) if step.amount[0] in ("parameters", "bytes") else macs_of_tensors(network)
    for layer in offered:
        found, (rows, columns) = ranks[layer.weight], layer.matrix(network).shape
        full = min(rows, columns)
        saved = [cost[layer.weight] * (1 - r * (rows + columns) / (rows * columns)) for r in found]
        if clock is not None and step.amount[0] == "latency":
            saved = list(found.values())
        loss = [float(parts[layer.weight].loss[r]) for r in found]
        offers.append(
            Offer(range(full), [0, *(full - r for r in found)], np.array([0.0, *loss]), np.array([0.0, *saved]))
        )
    if not offers:
        why = next(iter(kept.values()), "it has no linear layer or 1×1 convolution that the step may take")
        raise RecipeError(f"no layer of this network can become two thinner ones: {why}")
    choice = _choice(step, network, offers, cost, clock)
    small = network.edit()
    for layer, offer, count in zip(offered, offers, choice, strict=True):
        if count:
            _factor(small, network, layer, parts[layer.weight], len(offer.order) - count, facts)
    small = verify(finish(small), "pruning")
    widths = tuple(
        Width((layer_of(x.weight),), len(o.order), len(o.order) - n, x.weight)
        for x, o, n in zip(offered, offers, choice, strict=True)
    )
    faster = None if clock is None else 1 / clock([small], rounds=31)[0].median
    return Thinned(small, widths, kept, faster)


def _facts(
    step: Prune, network: Network, layers: list[Layer], batches: list[Batch], seed: int, advance: Callable[[], None]
) -> Facts:
    """The moments of the layers' inputs, and how much the network depends on their outputs, if the score reads them."""
    structure: Structure = find(network)
    groups = tuple(
        Group(np.array([0]), {(x.weight, x.columns): np.arange(x.matrix(network).shape[1])[None]}) for x in layers
    )
    needs = made(SCORES, step.score, "score").needs & {"inputs", "outputs"}
    return Facts(replace(structure, groups=groups), batches, needs, seed, advance)


def _ranks(
    step: Prune, network: Network, layers: list[Layer], parts: dict[str, Factors], clock: Clock | None
) -> tuple[dict[str, dict[int, float]], dict[str, str]]:
    """For each layer the ranks worth something, with the share of the latency that they save; why others have none."""
    kinds, kept = dict[tuple[int, ...], list[Layer]](), dict[str, str]()
    cost = macs_of_tensors(network)
    for layer in layers:
        kinds.setdefault((*layer.matrix(network).shape, cost[layer.weight]), []).append(layer)
    found = dict[str, dict[int, float]]()
    for (rows, columns, *_), members in kinds.items():
        full, pays = min(rows, columns), rows * columns / (rows + columns)
        most = int(np.ceil(full * (1 - step.most)))
        grid = sorted({_rounded(full * k / 8, step.multiple) for k in EIGHTHS}, reverse=True)
        grid = [r for r in grid if max(1, most) <= r < pays]
        gains = dict.fromkeys(grid, 0.0)
        if clock is not None and grid:
            gains = _rewarded(network, members, parts, grid, clock)
        found.update({x.weight: gains for x in members})
        if not gains:
            why = said("two thinner layers are no faster in the engine") if grid else said("no rank makes it cheaper")
            kept.update({layer_of(x.weight): why for x in members})
    return found, kept


def _rounded(rank: float, multiple: int) -> int:
    return max(1, int(rank) // multiple * multiple)


def _rewarded(
    network: Network, members: list[Layer], parts: dict[str, Factors], grid: list[int], clock: Clock
) -> dict[int, float]:
    """The ranks at which all layers of a kind together save time, with the share that each of them saves."""
    tried = []
    for rank in grid:
        small = network.edit()
        for layer in members:
            factor(small, layer.node.name, *parts[layer.weight].at(rank))
        tried.append(finish(small))
    gains = beyond_noise(dict(zip(grid, clock(tried), strict=True)))
    return {rank: gain / len(members) for rank, gain in gains.items()}


def _choice(step: Prune, network: Network, offers: list[Offer], cost: dict[str, int], clock: Clock | None) -> Choice:
    amount, factor_ = step.amount
    if amount == "channels":
        return uniform(offers, factor_)
    whole = 1.0 if amount == "latency" else float(sum(cost.values()))

    def left(choice: Choice) -> float:
        return whole - sum(float(o.saved[list(o.counts).index(n)]) for o, n in zip(offers, choice, strict=True))

    return reaching(offers, whole / factor_, left, f"the {amount}", priced=True)


def _factor(small: Network, network: Network, layer: Layer, found: Factors, rank: int, facts: Facts) -> None:
    first, second = found.at(rank)
    mean = facts.means.get(layer.weight)
    shift = None
    if mean is not None:
        apart = layer.matrix(network).double() - second.double() @ first.double()
        shift = (apart @ mean.double()).to(torch.float32)
    factor(small, layer.node.name, first, second, shift)
