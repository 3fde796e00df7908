"""Parts of a pruning: each is scored on what the one before it left, and repaired against the dense network."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from tersor.errors import CalibrationError, RecipeError, RewriteError
from tersor.network.groups import Group, Kept, Structure, settled
from tersor.network.groups.check import TOLERANCE, difference
from tersor.network.groups.costs import macs_of_tensors, share_of_atoms, sizes_of_tensors
from tersor.network.network import Network
from tersor.network.verify import verify
from tersor.pipeline.graph.batches import Batch
from tersor.pipeline.graph.pruning import branches, widths
from tersor.pipeline.graph.pruning.facts import Facts
from tersor.pipeline.graph.pruning.parts import Parts
from tersor.pipeline.graph.pruning.repair import repaired
from tersor.pipeline.graph.pruning.selection import Choice, Offer, allowed, given, reaching, taken, uniform
from tersor.pipeline.graph.pruning.timed.speed import Speed
from tersor.pipeline.graph.pruning.trials import losses
from tersor.pipeline.progress import Stage
from tersor.recipe import Prune
from tersor.recipe.steps.prune import GIVEN
from tersor.solvers.structured import REPAIRS, SCORES
from tersor.tables import made
from tersor.words import _

WORDS = {"macs": "multiply-accumulates", "latency": "the share of the latency"}


class Rounds:
    """One pruning.

    Args:
        step: what is asked.
        parts: what may go.
        batches: the calibration data.
        seed: of what is drawn.
        speed: what is saved in the engine, for a target in latency.

    Attributes:
        gone: what has gone so far.
        whole: groups that the score cannot rate, and why.
        ends: how much had gone behind each round.
    """

    def __init__(
        self, step: Prune, parts: Parts, batches: list[Batch], seed: int, speed: Speed | None = None
    ) -> None:
        self.step, self.parts, self.batches, self.seed, self.speed = step, parts, batches, seed, speed
        self.score = made(SCORES, step.score, "score")
        self.repair = None if step.repair is None else made(REPAIRS, step.repair, "repair")
        self.rounds = step.rounds if self.score.needs else 1  # weights alone are rated once
        self.gone: list[int] = []
        self.whole: dict[str, str] = {}
        self.ends: list[int] = []

    def run(self, bar: Stage) -> Network:
        """The small network.

        Raises:
            RewriteError: the result is not what the network computes with zeros in place of what went.
        """
        small, rounds = self.parts.structure.network, self.rounds
        for number in range(1, rounds + 1):
            offers = self._offers(small, number, bar)
            self.gone += taken(offers, self._chosen(offers, number, bar))
            self.ends.append(len(self.gone))
            small = self.parts.small(self.gone)
            if number == rounds and difference(self.parts.structure, [a for a in self.gone if a >= 0]) > TOLERANCE:
                raise RewriteError(
                    "the pruned network does not compute what the network computes with zeros in place of what went: "
                    "please report this"
                )
            if self.repair is not None and self.batches:
                bar.say(_("pruning, round {number} of {count}: repair", number=number, count=rounds))
                small = repaired(Kept(self.parts.structure, self.gone), small, self.batches, self.repair)
        return verify(settled(small), "pruning")

    def _offers(self, small: Network, number: int, bar: Stage) -> list[Offer]:
        """What may go, as the present network rates it; atoms are those of the dense network."""
        structure = self.parts.structure
        groups = [present(structure, g, self.gone, small) for g in structure.groups]
        bar.say(_("pruning, round {number}: scores", number=number))
        now = replace(structure, network=small, groups=tuple(g for g in groups if g.sites))
        facts = Facts(now, self.batches, self.score.needs, self.seed + number, bar.advance)
        cost = sizes_of_tensors(small) if self.step.amount[0] in ("parameters", "bytes") else macs_of_tensors(small)
        offers, place = list[Offer](), dict[int, int]()
        for k, (group, whole) in enumerate(zip(groups, structure.groups, strict=True)):
            bar.advance()
            if len(group) < 2 or not group.sites:
                continue
            try:
                ranking = self.score(facts.problem(group))
            except RecipeError as error:
                self.whole[group.name] = str(error)
                continue
            if not ranking.loss.isfinite().all():
                raise CalibrationError(
                    f"{group.name}: its scores are NaN or infinite: look for bad samples in the calibration data"
                )
            most = max(0.0, 1 - (1 - self.step.most) * len(whole) / len(group))
            counts = allowed(len(group), self.step.multiple, most)
            order = ranking.order.numpy()
            loss = np.concatenate(([0.0], ranking.loss.double().numpy()))
            saved = np.concatenate(([0.0], share_of_atoms(group, cost, small)[order].cumsum()))
            if self.speed is not None:
                counts, saved = self.speed.of_group(k, len(group), counts)
            place[k] = len(offers)
            offers.append(
                Offer(
                    group.atoms[order].tolist(), counts, loss[counts], saved[counts], len(whole) - len(group),
                    name=whole.name,
                )
            )  # fmt: skip
        if self.step.target == GIVEN:
            offers += self._named_branches(number)
        elif self.parts.left(self.gone):
            offers = widths.measured(offers, [groups[k] for k in place], facts, structure.network, self.batches)
            offers += self._branches(small, offers, place)
        if not offers and not self.gone:
            raise RecipeError(f"no group can be rated: {next(iter(self.whole.values()), 'each has one channel left')}")
        return offers

    def _branches(self, small: Network, offers: list[Offer], place: dict[int, int]) -> list[Offer]:
        """What the branches offer that are still there."""
        structure, left = self.parts.structure, self.parts.left(self.gone)
        dropped, found = self.parts.dropped(left), list[Offer]()
        trials = branches.without(small, dropped, self.batches)
        lost = losses(structure.network, small, trials, self.batches)
        for part, branch, loss in zip(left, dropped, lost, strict=True):
            inside = tuple(
                at for k, at in place.items() if lies_in(structure, structure.groups[k], branch.operators)
            )
            if self.speed is not None:
                saved = self.speed.of_branch(-1 - part) - sum(
                    self.speed.spent(k, len(offers[at].order)) for k, at in place.items() if at in inside
                )
            else:
                what = self.step.amount[0]
                saved = self.parts.cost(what, self.gone) - self.parts.cost(what, [*self.gone, part])
            cost, worth = np.array([0.0, loss]), np.array([0.0, max(0.0, saved)])
            found.append(Offer([part], (0, 1), cost, worth, branch=True, inside=inside, name=branch.name))
        return found

    def _named_branches(self, number: int) -> list[Offer]:
        """The branches that the step drops in this round; what they cost does not matter."""
        left = self.parts.left(self.gone)
        found = [
            Offer([part], (0, 1), np.zeros(2), np.zeros(2), branch=True, name=branch.name)
            for part, branch in zip(left, self.parts.dropped(left), strict=True)
        ]
        return [offer for offer in found if self.step.dropped.get(offer.name) == number]

    def pinned(self) -> Prune:
        """The step that makes the same network without choosing anything."""
        names = [branch.name for branch in self.parts.branches]
        left, dropped = dict[str, tuple[int, ...]](), dict[str, int]()
        for group in self.parts.structure.groups:
            atoms = set(group.atoms.tolist())
            counts = tuple(len(atoms - set(self.gone[:end])) for end in self.ends)
            if counts[-1] < len(group):
                left[group.name] = counts
        for number, (first, last) in enumerate(pairwise([0, *self.ends]), 1):
            dropped |= {names[-1 - part]: number for part in self.gone[first:last] if part < 0}
        if not (left or dropped):
            return self.step
        given = {"target": GIVEN, "rounds": self.rounds, "widths": left, "dropped": dropped}
        return Prune.model_validate(self.step.model_dump() | given)

    def _chosen(self, offers: list[Offer], number: int, bar: Stage) -> Choice:
        """How many go in this round."""
        (amount, factor), part = self.step.amount, number / self.rounds
        if amount == GIVEN:
            return given(offers, self.step.widths, self.step.dropped, number)
        if amount == "channels":
            return uniform(offers, factor * part)
        priced = self.score.comparable
        if self.speed is not None:
            return self.speed.chosen(self.parts, offers, self.gone, factor**part, part == 1, bar, priced=priced)
        whole = self.parts.cost(amount, ())

        def cost(choice: Choice) -> float:
            return self.parts.cost(amount, [*self.gone, *taken(offers, choice)])

        return reaching(offers, whole / factor**part, cost, WORDS.get(amount, amount), priced=priced)


def present(structure: Structure, group: Group, gone: list[int], small: Network) -> Group:
    """What is left of a group, with the positions that its atoms have in the smaller tensors."""
    kept, lost = Kept(structure, gone), set(gone)
    there = {name for name, _tensor in small.tensors()}
    rows = np.array([k for k, atom in enumerate(group.atoms.tolist()) if atom not in lost], np.int64)
    sites = {}
    for (name, dim), found in group.sites.items():
        if name not in there:  # in a branch that went
            continue
        mask = kept.mask(structure.flow.tensors[name][dim])
        now = mask.cumsum() - 1
        counts = mask[found[rows]].sum(1)
        if len(rows) and (counts == counts[0]).all() and counts[0]:
            sites[name, dim] = now[found[rows][mask[found[rows]]]].reshape(len(rows), -1)
    return Group(group.atoms[rows], sites)


def lies_in(structure: Structure, group: Group, operators: frozenset[str]) -> bool:
    """Whether all that reads a group's tensors goes with a branch."""
    names = {name for name, _dim in group.sites}
    readers = {
        user.name
        for node in structure.network.graph.nodes
        if node.op == "get_attr" and str(node.target) in names
        for user in node.users
    }
    return readers <= operators


