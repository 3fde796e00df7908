"""The step `prune` for graphs: rounds of scoring, choosing, cutting and repair."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from tersor.errors import CalibrationError, RecipeError, RewriteError
from tersor.network.groups import Group, Kept, Structure, cut, macs, macs_left, parameters, parameters_left
from tersor.network.groups.check import TOLERANCE, difference
from tersor.network.groups.costs import macs_of_tensors, share_of_atoms, sizes_of_tensors
from tersor.network.groups.flow import sizes
from tersor.network.network import Network
from tersor.network.verify import verify
from tersor.pipeline.graph.batches import Batch, exactly, passing, seeded
from tersor.pipeline.graph.pruning.facts import Facts
from tersor.pipeline.graph.pruning.groups import Width, groups_for, layers_of_group
from tersor.pipeline.graph.pruning.repair import repaired
from tersor.pipeline.graph.pruning.selection import Offer, reaching, taken, uniform
from tersor.pipeline.graph.pruning.weights import prune_weights
from tersor.pipeline.progress import Stage, Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Prune
from tersor.solvers.structured import REPAIRS, SCORES
from tersor.tables import made
from tersor.task import Task, batch_size
from tersor.words import _, said

TARGETS = ("macs", "parameters", "channels")
MEMORY, LIVE = 4e9, 8
"""Bytes that the values of both networks may take, and how many of the largest size are there at once."""


@dataclass(frozen=True)
class Pruned:
    """What happened in one step `prune`.

    Args:
        target: what was asked for.
        macs, parameters: of one sample, before and after.
        widths: of every group that could lose something.
        fixed: layers none of whose outputs can go, and why.
        whole: groups that the score cannot rate, and why; they stay whole.
        notes: warnings for the report.
    """

    target: str
    macs: tuple[int, int]
    parameters: tuple[int, int]
    widths: tuple[Width, ...]
    fixed: dict[str, str]
    whole: dict[str, str]
    notes: tuple[str, ...] = ()


def prune(step: Prune, subject: Subject, task: Task, stages: Stages) -> Subject:
    """The subject with a narrower network.

    Raises:
        RecipeError: patterns that fit nothing, or a target that cannot be reached.
        RewriteError: the result is not what the network computes with zeros in place of what went.
    """
    if step.amount[0] == "weights":
        return prune_weights(step, subject, task, stages)
    if step.amount[0] not in TARGETS:
        raise RecipeError(
            f"the target {step.target!r} is not for a network captured as a graph; it takes {', '.join(TARGETS)} and "
            "weights, such as `2x macs`, `30% channels` or `90% weights`"
        )
    dense = subject.network
    assert dense is not None
    with stages.stage("prune", _("finding what can go")):
        structure = groups_for(step, dense, subject.seed)
        batches = _batches(step, task, dense, subject.seed)
    work = _Rounds(step, structure, batches, subject.seed)
    passes = ("inputs" in work.score.needs) + bool(work.score.needs & {"outputs", "gradients"})
    total = work.rounds * (passes * len(batches) + len(structure.groups))
    with stages.stage("prune", _("pruning"), total) as bar:
        small = work.run(bar)
    record = Pruned(
        step.target,
        (macs(dense), macs(small)),
        (parameters(dense), parameters(small)),
        _widths(structure, set(work.gone)),
        {name.rpartition(".")[0]: why for (name, dim), why in structure.fixed.items() if dim == 0},
        work.whole,
        _notes(step, task, dense, batches),
    )
    found = replace(subject, network=small, history=(*subject.history, step))
    return replace(found, prunings=(*subject.prunings, record))


class _Rounds:
    """Parts of a pruning: each is scored on what the one before it left, and repaired against the dense network."""

    def __init__(self, step: Prune, structure: Structure, batches: list[Batch], seed: int) -> None:
        self.step, self.structure, self.batches, self.seed = step, structure, batches, seed
        self.score = made(SCORES, step.score, "score")
        self.repair = None if step.repair is None else made(REPAIRS, step.repair, "repair")
        self.rounds = step.rounds if self.score.needs else 1  # weights alone are rated once
        self.gone: list[int] = []
        self.whole: dict[str, str] = {}

    def run(self, bar: Stage) -> Network:
        """The small network."""
        rounds = self.rounds
        small = self.structure.network
        for number in range(1, rounds + 1):
            offers = self._offers(small, number, bar)
            self.gone += self._chosen(offers, number / rounds)
            kept = Kept(self.structure, self.gone)
            small = cut(self.structure, self.gone)
            if number == rounds and difference(self.structure, self.gone) > TOLERANCE:
                raise RewriteError(
                    "the pruned network does not compute what the network computes with zeros in place of what went: "
                    "please report this"
                )
            if self.repair is not None and self.batches:
                bar.say(_("pruning, round {number} of {count}: repair", number=number, count=rounds))
                small = repaired(kept, small, self.batches, self.repair)
        return verify(small, "pruning")

    def _offers(self, small: Network, number: int, bar: Stage) -> list[Offer]:
        """What the groups offer, as the present network rates it; atoms are those of the dense network."""
        groups = [_present(self.structure, g, self.gone) for g in self.structure.groups]
        present = replace(self.structure, network=small, groups=tuple(groups))
        bar.say(_("pruning, round {number}: scores", number=number))
        facts = Facts(present, self.batches, self.score.needs, self.seed + number, bar.advance)
        amount, _factor = self.step.amount
        cost = sizes_of_tensors(small) if amount == "parameters" else macs_of_tensors(small)
        offers = []
        for group, whole in zip(groups, self.structure.groups, strict=True):
            bar.advance()
            if len(group) < 2:
                continue
            try:
                ranking = self.score(facts.problem(group))
            except RecipeError as error:
                self.whole[group.name] = str(error)
                continue
            saved = torch.from_numpy(share_of_atoms(group, cost, small))
            most = 1 - (1 - self.step.most) * len(whole) / len(group)
            if not ranking.loss.isfinite().all():
                raise CalibrationError(
                    f"{group.name}: its scores are NaN or infinite: look for bad samples in the calibration data"
                )
            gone = len(whole) - len(group)
            offers.append(Offer(group, ranking, saved, self.step.multiple, max(0.0, most), gone))
        if not offers and not self.gone:
            raise RecipeError(f"no group can be rated: {next(iter(self.whole.values()), 'each has one channel left')}")
        return offers

    def _chosen(self, offers: list[Offer], part: float) -> list[int]:
        """The atoms that go in this part."""
        amount, factor = self.step.amount
        if amount == "channels":
            return taken(offers, uniform(offers, factor * part))
        dense: Callable[[Kept], int] = macs_left if amount == "macs" else parameters_left
        whole = dense(Kept(self.structure, ()))

        def cost(more: list[int]) -> float:
            return dense(Kept(self.structure, (*self.gone, *more)))

        words, limit = ("multiply-accumulates" if amount == "macs" else amount), whole / factor**part
        return reaching(offers, limit, cost, words, priced=self.score.comparable)


def _present(structure: Structure, group: Group, gone: list[int]) -> Group:
    """What is left of a group, with the positions that its atoms have in the smaller tensors."""
    kept, lost = Kept(structure, gone), set(gone)
    rows = np.array([k for k, atom in enumerate(group.atoms.tolist()) if atom not in lost], np.int64)
    sites = {}
    for (name, dim), found in group.sites.items():
        mask = kept.mask(structure.flow.tensors[name][dim])
        now = mask.cumsum() - 1
        counts = mask[found[rows]].sum(1)
        if len(rows) and (counts == counts[0]).all() and counts[0]:
            sites[name, dim] = now[found[rows][mask[found[rows]]]].reshape(len(rows), -1)
    return Group(group.atoms[rows], sites)


def _batches(step: Prune, task: Task, network: Network, seed: int) -> list[Batch]:
    if not made(SCORES, step.score, "score").needs and step.repair is None:
        return []
    samples = min(step.samples, _affordable(network))
    with seeded(seed):
        return list(exactly(passing(task, network), samples, network.dynamic_batch))


def _notes(step: Prune, task: Task, network: Network, batches: list[Batch]) -> tuple[str, ...]:
    """What a user could not know of the data that was used."""
    found, samples = list[str](), _affordable(network)
    if batches and samples < step.samples:
        found.append(said("pruning read {samples} of {asked} samples, as many as its memory holds",
                          samples=samples, asked=step.samples))  # fmt: skip
    if batches and task.token_mask is not None:
        found.append(said("pruning rated padding tokens like all others: it does not read token_mask"))
    return tuple(found)


def _affordable(network: Network) -> int:
    """As many samples as ``MEMORY`` holds: repair keeps the values of all samples, of both networks, at once."""
    values = (v for n in network.operators() if isinstance(v := n.meta.get("val"), torch.Tensor))
    largest = max((prod(sizes(v)) for v in values), default=1) / max(1, batch_size(network.example))
    return max(1, int(MEMORY / (LIVE * 4 * largest)))


def _widths(structure: Structure, gone: set[int]) -> tuple[Width, ...]:
    found = []
    for group in structure.groups:
        left = sum(atom not in gone for atom in group.atoms.tolist())
        found.append(Width(layers_of_group(group, structure.network), len(group), left))
    return tuple(found)
