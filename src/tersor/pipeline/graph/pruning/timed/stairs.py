"""What narrower layers and missing branches save in the engine: differences of whole networks, measured.

Latencies of single operators do not add up, and engines reward some widths only. So each kind of group is made
narrower in the whole network, all groups of the kind at once, and the widths that save nothing are not offered.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from tersor.measure import interleave
from tersor.measure.choosing.device import alone_on_the_device
from tersor.measure.latency import Latency, quantile
from tersor.network.groups import Branch, Group
from tersor.network.groups.costs import macs_of_tensors, share_of_atoms
from tersor.network.groups.flow import shape_of
from tersor.network.network import Network, op_name
from tersor.pipeline.graph.measuring import single
from tersor.pipeline.graph.pruning.parts import Parts
from tersor.pipeline.graph.pruning.timed.store import Store, shape_of_work

EIGHTHS, FEWER = (7, 6, 5, 4, 3, 2, 1), (6, 4, 2)
CANDIDATES, TOGETHER = 70, 6
GAIN = 0.004
"""The share of the network's latency that a narrower width must save, all groups of a kind together."""

Compile = Callable[[Network], Callable[..., object]]
"""Make a network run in the engine as the recipe will make it run."""


@dataclass(frozen=True)
class Stairs:
    """Milliseconds by width.

    Args:
        dense: of the whole network.
        groups: for each group what it saves at each width that saves more than the next larger one.
        branches: for each branch what it saves.
    """

    dense: float
    groups: tuple[dict[int, float], ...]
    branches: tuple[float, ...] = field(default=())

    def saved(self, group: int, width: int) -> float:
        """What a group saves that has so many channels left: that of the smallest measured width above."""
        return max((ms for at, ms in self.groups[group].items() if at >= width), default=0.0)


@dataclass(frozen=True)
class Share:
    """The latency of a network over another one's: the median over rounds, and three quarters of the rounds at most."""

    median: float
    high: float


def _share(one: Latency, other: Latency) -> Share:
    rounds = sorted(a / b for a, b in zip(one.rounds, other.rounds, strict=True))
    return Share(quantile(rounds, 0.5), quantile(rounds, 0.75))


class Clock:
    """Networks timed side by side in the engine.

    Args:
        compiled: makes a network run.
        dense: the network that all are compared with.
        store: of what was measured before.
    """

    def __init__(self, compiled: Compile, dense: Network, store: Store | None = None) -> None:
        self.compiled, self.inputs, self.store = compiled, single(dense), store or Store()
        self.dense = compiled(dense)

    def __call__(self, networks: Sequence[Network], rounds: int = 15, seconds: float = 0.02) -> list["Share"]:
        """The latency of each network over that of the dense one."""

        def measure(places: list[int]) -> list[tuple[float, float]]:
            runners = {"dense": self.dense, **{str(k): self.compiled(networks[k]) for k in places}}
            calls = {name: (lambda r=run: r(*self.inputs)) for name, run in runners.items()}
            with alone_on_the_device():
                times = interleave(calls, rounds=rounds, min_time=seconds)
            shares = [_share(times[str(k)], times["dense"]) for k in places]
            return [(share.median, share.high) for share in shares]

        keys = [f"{shape_of_work(network)}-{rounds}" for network in networks]
        return [Share(median, high) for median, high in self.store.each(keys, measure)]

    def milliseconds(self) -> float:
        """Of the dense network."""

        def measure(_places: list[int]) -> list[float]:
            return [interleave({"dense": lambda: self.dense(*self.inputs)}, min_time=0.02)["dense"].median]

        (found,) = self.store.each(["dense"], measure)
        return found


def kinds(parts: Parts) -> tuple[dict[object, list[int]], dict[object, list[int]]]:
    """Groups, and branches, that are alike: for each kind their numbers."""
    network = parts.structure.network
    cost, groups, branches = macs_of_tensors(network), dict[object, list[int]](), dict[object, list[int]]()
    for number, group in enumerate(parts.structure.groups):
        groups.setdefault(_kind(group, cost, network), []).append(number)
    for number, branch in enumerate(parts.branches):
        branches.setdefault(_kind_of_branch(branch, network), []).append(number)
    return groups, branches


def measured(parts: Parts, clock: Clock, advance: Callable[[int, int], None] = lambda done, all_: None) -> Stairs:
    """Measure all kinds.

    Args:
        parts: what may go.
        clock: times networks.
        advance: is told how many candidates are measured, of how many.
    """
    groups, branches = kinds(parts)
    eighths = EIGHTHS if len(groups) * len(EIGHTHS) <= CANDIDATES else FEWER
    sizes = {kind: len(parts.structure.groups[members[0]]) for kind, members in groups.items()}
    widths = {kind: sorted({max(1, round(n * k / 8)) for k in eighths} - {n}) for kind, n in sizes.items()}
    each: dict[object, dict[int, Share]] = {kind: {} for kind in (*groups, *branches)}
    count, done = sum(map(len, widths.values())) + len(branches), 0

    def timed(wanted: list[tuple[object, int]]) -> None:
        for first in range(0, len(wanted), TOGETHER):
            part = wanted[first : first + TOGETHER]
            networks = [parts.small(_narrower(parts, kind, width, groups, branches)) for kind, width in part]
            for (kind, width), share in zip(part, clock(networks), strict=True):
                each[kind][width] = share
            advance(done + min(first + TOGETHER, len(wanted)), count)

    # Between two widths that take as long there is nothing to find, so only the others are halved.
    wanted = [(kind, found[0]) for kind, found in widths.items() if found] + [(kind, 0) for kind in branches]
    while wanted:
        timed(wanted)
        done += len(wanted)
        wanted = [(kind, w) for kind, found in widths.items() for w in _between(found, each[kind], sizes[kind])]
    dense = clock.milliseconds()
    found = {kind: beyond_noise(dict(sorted(of.items(), reverse=True))) for kind, of in each.items()}
    of_group = {m: (kind, len(members)) for kind, members in groups.items() for m in members}
    of_branch = {m: (kind, len(members)) for kind, members in branches.items() for m in members}
    return Stairs(
        dense,
        tuple(
            {width: dense * gain / of_group[k][1] for width, gain in found.get(of_group[k][0], {}).items()}
            for k in range(len(parts.structure.groups))
        ),
        tuple(dense * found.get(of_branch[k][0], {}).get(0, 0.0) / of_branch[k][1] for k in range(len(parts.branches))),
    )


def _narrower(
    parts: Parts, kind: object, width: int, groups: Mapping[object, list[int]], branches: Mapping[object, list[int]]
) -> list[int]:
    """What goes if all groups of a kind are so wide, or all branches of a kind go."""
    if kind in branches:
        return [-1 - member for member in branches[kind]]
    found = (parts.structure.groups[member] for member in groups[kind])
    return [a for group in found for a in group.atoms[: len(group) - width].tolist()]


def _between(widths: Sequence[int], known: Mapping[int, Share], size: int) -> list[int]:
    """Of rising widths the middle ones between neighbours whose latencies differ.

    >>> _between([2, 4, 6, 8, 10], {2: Share(0.5, 0.5)}, 12)
    [8]
    >>> _between([2, 4, 6, 8, 10], {2: Share(0.5, 0.5), 8: Share(0.5, 0.5)}, 12)
    [10]
    """
    ends = [*(w for w in widths if w in known), size]
    shares, found = {**{w: share.median for w, share in known.items()}, size: 1.0}, list[int]()
    for low, high in pairwise(ends):
        between = [w for w in widths if low < w < high]
        if between and shares[high] - shares[low] >= GAIN:
            found.append(between[len(between) // 2])
    return found


def beyond_noise(shares: Mapping[int, Share]) -> dict[int, float]:
    """Of widths, the largest in front, those that save more than the ones before: the share that they save.

    >>> beyond_noise({12: Share(1.0, 1.01), 8: Share(0.8, 0.85), 4: Share(0.79, 0.84)})
    {8: 0.2}
    """
    found = dict[int, float]()
    for width, share in shares.items():
        least = max(found.values(), default=0.0)
        if 1 - share.median >= least + GAIN and 1 - share.high > least:
            found[width] = round(1 - share.median, 6)
    return found


def _kind(group: Group, cost: dict[str, int], network: Network) -> object:
    sites = sorted((tuple(network.tensor(n).shape), dim, found.shape[1]) for (n, dim), found in group.sites.items())
    return tuple(sites), round(float(np.sum(share_of_atoms(group, cost, network)))), len(group)


def _kind_of_branch(branch: Branch, network: Network) -> object:
    nodes = [n for n in network.operators() if n.name in branch.operators]
    shapes = [tuple(shape_of(n)) if isinstance(n.meta.get("val"), torch.Tensor) else () for n in nodes]
    return "branch", tuple(zip(map(op_name, nodes), shapes, strict=True))
