"""The step `prune` for graphs: what may go, rounds of scoring, choosing, cutting and repair, and the record of them."""

from dataclasses import replace
from math import prod

import torch

from tersor.engines.targets import cpuinfo
from tersor.errors import RecipeError
from tersor.measure.environment import cpu_name
from tersor.network.groups import Kept, branches, find, macs, parameters
from tersor.network.groups.flow import sizes
from tersor.network.network import Network
from tersor.network.rewrites.fold_constants import FoldConstants
from tersor.pipeline.graph.batches import Batch, exactly, passing, seeded
from tersor.pipeline.graph.pruning.groups import Width, asked, groups_for, layers_of_group
from tersor.pipeline.graph.pruning.named.narrowed import indices
from tersor.pipeline.graph.pruning.padding import padded
from tersor.pipeline.graph.pruning.parts import Parts
from tersor.pipeline.graph.pruning.rank import thinned
from tersor.pipeline.graph.pruning.record import Pruned
from tersor.pipeline.graph.pruning.rounds import Rounds, lies_in
from tersor.pipeline.graph.pruning.timed.candidates import compiler
from tersor.pipeline.graph.pruning.timed.speed import Speed
from tersor.pipeline.graph.pruning.timed.stairs import Clock, measured
from tersor.pipeline.graph.pruning.timed.store import Store
from tersor.pipeline.graph.pruning.weights import prune_weights
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Prune
from tersor.recipe.steps.prune import GIVEN
from tersor.solvers.structured import SCORES
from tersor.tables import made, name_of
from tersor.task import Task, batch_size
from tersor.training.accelerator import is_first_process, processes
from tersor.words import _, said

TARGETS = ("macs", "parameters", "bytes", "latency", "channels", GIVEN)
MEMORY, LIVE = 4e9, 8
"""Bytes that the values of both networks may take, and how many of the largest size are there at once."""


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
    assert subject.network is not None
    dense = FoldConstants()(subject.network)  # a weight that is computed from others, as by weight_norm, cannot be cut
    subject = replace(subject, network=dense)
    _check(step)
    with stages.stage("prune", _("finding what can go")):
        parts = _parts(step, dense, subject.seed)
        _check_given(step, parts)
        batches = _batches(step, task, dense, subject.seed)
    if "rank" in step.structure:
        return _with_two_for_one(step, subject, task, batches, stages)
    speed = _speed(step, parts, subject, task, batches, stages) if step.amount[0] == "latency" else None
    work = Rounds(step, parts, batches, subject.seed, speed)
    passes = ("inputs" in work.score.needs) + bool(work.score.needs & {"outputs", "gradients"})
    total = work.rounds * (passes * len(batches) + len(parts.structure.groups))
    with stages.stage("prune", _("pruning"), total) as bar:
        small = work.run(bar)
    record = Pruned(
        step.target,
        (macs(dense), macs(small)),
        (parameters(dense), parameters(small)),
        _widths(parts, work.gone),
        {name.rpartition(".")[0]: why for (name, dim), why in parts.structure.fixed.items() if dim == 0},
        work.whole,
        _notes(step, dense, batches),
        tuple(branch.name for branch in parts.dropped(work.gone)),
        None if speed is None or speed.reached is None else 1 / speed.reached,
        indices(Kept(parts.structure, work.gone)),
        pinned=work.pinned(),
    )
    found = replace(subject, network=small, history=(*subject.history, step))
    return replace(found, prunings=(*subject.prunings, record))


def _with_two_for_one(
    step: Prune, subject: Subject, task: Task, batches: list[Batch], stages: Stages
) -> Subject:
    """The subject with factored layers."""
    dense = subject.network
    assert dense is not None
    clock = None
    if getattr(subject.host, "compile", None) is not None:
        sample = batches or _some_batches(task, dense, subject.seed)
        clock = Clock(compiler(subject, task, sample), dense, _store(subject))
    with stages.stage("prune", _("choosing ranks"), len(batches)) as bar:
        found = thinned(step, dense, batches, subject.seed, clock, bar.advance)
    record = Pruned(
        step.target, (macs(dense), macs(found.network)), (parameters(dense), parameters(found.network)), (),
        found.kept, {}, _notes(step, dense, batches), faster=found.faster, ranks=found.widths,
    )  # fmt: skip
    made = replace(subject, network=found.network, history=(*subject.history, step))
    return replace(made, prunings=(*subject.prunings, record))


def _check(step: Prune) -> None:
    score = made(SCORES, step.score, "score")
    if "rank" in step.structure and (len(step.structure) > 1 or step.target == GIVEN):
        raise RecipeError("`rank` is a step of its own: write another step `prune` for channels and branches")
    if "branches" in step.structure and not score.comparable:
        raise RecipeError(
            f"the score {name_of(step.score)} rates channels of one group alone, so branches cannot compete with them: "
            "take obs or fisher, or leave `branches` out of `structure`"
        )


def _check_given(step: Prune, parts: Parts) -> None:
    """Widths and branches that are given by name belong to this network."""
    sizes = {group.name: len(group) for group in parts.structure.groups}
    known = {branch.name for branch in parts.branches}
    if unknown := [name for name in step.widths if name not in sizes] + sorted(step.dropped.keys() - known):
        raise RecipeError(
            f"no group or branch of this network is named {unknown[0]}, to which the step gives a width: take the "
            "recipe of a result that was pruned from this network, with `branches` in its `structure` where some go"
        )
    for name, left in step.widths.items():
        if left[0] > sizes[name]:
            raise RecipeError(f"{name} has {sizes[name]} channels, and {left[0]} of them are to stay")


def _parts(step: Prune, network: Network, seed: int) -> Parts:
    """The groups and branches that the step may take from."""
    if "rank" in step.structure:
        return Parts(find(network))
    structure = groups_for(step, network, seed)
    if "branches" not in step.structure:
        return Parts(structure)
    found = tuple(b for b in branches(network) if asked(step, b.layers))
    if "channels" not in step.structure:
        structure = replace(structure, groups=())
        if not found:
            raise RecipeError("no branch of this network lies beside a shortcut: allow `channels` in `structure`")
    return Parts(structure, found)


def _speed(
    step: Prune, parts: Parts, subject: Subject, task: Task, batches: list[Batch], stages: Stages
) -> Speed:
    """The measured stairs, for a target in latency."""
    assert subject.network is not None
    sample = batches or _some_batches(task, subject.network, subject.seed)
    with stages.stage("prune", _("measuring the engine"), 1) as bar:
        clock = Clock(compiler(subject, task, sample), subject.network, _store(subject))
        return Speed(clock, measured(parts, clock, bar.at))


def _store(subject: Subject) -> Store:
    """What was measured before, if the host keeps its state in a folder.

    Raises:
        RecipeError: several processes would each measure, and choose networks of their own.
    """
    place, first = getattr(subject.host, "place", None), is_first_process()
    folder = getattr(place, "folder", None)
    if folder is None:
        if processes() > 1:
            raise RecipeError(
                "a step `prune` that measures latencies runs on several processes only with a folder, in which the "
                "first one tells the others what it measured: give `folder=`, or `--folder`"
            )
        return Store()
    policy = subject.host.policy
    options = getattr(subject.host.compile, "keywords", {})
    about = {
        "engine": f"{policy.engine} {policy.target}", "options": {k: str(v) for k, v in options.items()},
        "cpu": cpu_name(cpuinfo()), "steps": [step.model_dump(mode="json") for step in subject.ahead],
    }  # fmt: skip
    return Store(folder / f"step-{len(subject.history) + 1}" / "latencies.json", about, first)


def _batches(step: Prune, task: Task, network: Network, seed: int) -> list[Batch]:
    if not made(SCORES, step.score, "score").needs and step.repair is None:
        return []
    return _some_batches(task, network, seed, step.samples)


def _some_batches(task: Task, network: Network, seed: int, samples: int = 16) -> list[Batch]:
    with seeded(seed):
        read = exactly(passing(task, network), min(samples, _affordable(network)), network.dynamic_batch)
        return [padded(task, batch) for batch in read]


def _notes(step: Prune, network: Network, batches: list[Batch]) -> tuple[str, ...]:
    """What a user could not know of the data that was used."""
    found, samples = list[str](), _affordable(network)
    if batches and samples < step.samples:
        found.append(said("pruning read {samples} of {asked} samples, as many as its memory holds",
                          samples=samples, asked=step.samples))  # fmt: skip
    return tuple(found)


def _affordable(network: Network) -> int:
    """As many samples as ``MEMORY`` holds: repair keeps the values of all samples, of both networks, at once."""
    values = (v for n in network.operators() if isinstance(v := n.meta.get("val"), torch.Tensor))
    largest = max((prod(sizes(v)) for v in values), default=1) / max(1, batch_size(network.example))
    return max(1, int(MEMORY / (LIVE * 4 * largest)))


def _widths(parts: Parts, gone: list[int]) -> tuple[Width, ...]:
    """Of every group; 0 is left of those that went with a branch."""
    structure, lost, found = parts.structure, set(gone), list[Width]()
    for group in structure.groups:
        within = any(lies_in(structure, group, b.operators) for b in parts.dropped(gone))
        left = 0 if within else sum(atom not in lost for atom in group.atoms.tolist())
        found.append(Width(layers_of_group(group, structure.network), len(group), left, group.name))
    return tuple(found)
