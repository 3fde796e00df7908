"""The step `prune` for single weights of graphs: they become zero, and the network keeps its shape."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from tersor.errors import RecipeError
from tersor.network.groups import macs, parameters
from tersor.network.network import Network, finish, set_tensor
from tersor.network.verify import verify
from tersor.pipeline.graph.batches import Batch, exactly, passing, seeded
from tersor.pipeline.graph.pruning.padding import padded
from tersor.pipeline.graph.pruning.prunable import Weight, chosen
from tersor.pipeline.graph.pruning.reading import curvature, input_norms
from tersor.pipeline.graph.pruning.record import Pruned, zeros_of
from tersor.pipeline.progress import Stage, Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Prune
from tersor.solvers.weights import WEIGHT_SCORES, Curvature, WeightProblem
from tersor.solvers.weights.selection import MOST, check_pattern, check_share, kept, kept_of_each
from tersor.tables import made
from tersor.task import Task
from tersor.words import _

GRADIENTS = frozenset({"slopes", "squares", "blocks"})
# What only channels have, with the value that asks for nothing.
_OF_CHANNELS = {"multiple": (1,), "structure": (("channels",),), "repair": ("ridge", None)}


def prune_weights(step: Prune, subject: Subject, task: Task, stages: Stages) -> Subject:
    """The subject with zeros among its weights.

    Raises:
        RecipeError: patterns that fit nothing, a share that cannot go, or what the score needs is missing.
        CalibrationError: the network returns NaN or infinity.
    """
    dense = subject.network
    assert dense is not None
    weights, left = checked_weights(step, dense)
    score = made(WEIGHT_SCORES, step.score, "score")
    rounds = step.rounds if score.needs else 1  # weights alone are rated once
    batches = list[Batch]()
    if score.needs:
        with seeded(subject.seed):
            read = exactly(passing(task, dense), step.samples, dense.dynamic_batch)
            batches = [padded(task, batch) for batch in read]
    network = dense
    with stages.stage("prune", _("pruning"), rounds * max(1, len(batches))) as bar:
        for number in range(1, rounds + 1):
            bar.say(_("pruning, round {number}: scores", number=number))
            problems = _problems(step, network, weights, batches, subject.seed + number, bar)
            if not problems:
                raise RecipeError(f"the score {step.score} rates no weight of this network: take magnitude or obs")
            if unrated := [weights[name].layer for name in weights if name not in problems]:
                left = {**left, **dict.fromkeys(unrated, "the score cannot rate it: its inputs are not one value")}
            network = _round(step, network, weights, problems, number / rounds)
    network = verify(network, "pruning")
    weights = {name: weight for name, weight in weights.items() if weight.layer not in left}
    counts = (macs(dense), macs(network)), (parameters(dense), parameters(network))
    record = Pruned(step.target, *counts, zeros=zeros_of(network, weights), whole=left)
    found = replace(subject, network=network, history=(*subject.history, step))
    return replace(found, prunings=(*subject.prunings, record))


def checked_weights(step: Prune, network: Network) -> tuple[dict[str, Weight], dict[str, str]]:
    """The weights that may become zero, and why others stay.

    Raises:
        RecipeError: the step asks for what single weights do not have, or for what this network cannot lose.
    """
    for key, plain in _OF_CHANNELS.items():
        if getattr(step, key) not in plain:
            raise RecipeError(f"`{key}` is for channels, not for `target: {step.target}`: leave it out")
    weights, left = chosen(network, step.layers, step.keep)
    shapes = {name: network.tensor(name).shape for name in weights}
    if step.pattern is not None:
        for name, shape in shapes.items():
            check_pattern(weights[name].layer, shape, step.pattern, weights[name].inputs)
        return weights, left
    share, together = step.amount[1], made(WEIGHT_SCORES, step.score, "score").comparable
    check_share({weights[n].layer: s.numel() for n, s in shapes.items()}, share, together=together, most=_most(step))
    whole = sum(s.numel() for s in shapes.values())
    zeros = sum(z.zeros for z in zeros_of(network, weights))
    if round(share * whole) < zeros:
        raise RecipeError(
            f"{100 * zeros / whole:.4g}% of the weights are zero already: ask for more than `{step.target}`"
        )
    return weights, left


def _most(step: Prune) -> float:
    """The largest share of one layer; the default is meant for channels."""
    return MOST if step.most == Prune.model_fields["most"].default else step.most


def _problems(
    step: Prune, network: Network, weights: Mapping[str, Weight], batches: list[Batch], seed: int, bar: Stage
) -> dict[str, WeightProblem]:
    """The problem of every weight that the score can rate."""
    score = made(WEIGHT_SCORES, step.score, "score")
    found, norms = Curvature(score.needs & GRADIENTS, getattr(score, "block", 1)), dict[str, Tensor]()
    if found.needs:
        curvature(network, weights, batches, found, seed, bar.advance)
    if "norms" in score.needs:
        norms = input_norms(network, weights, batches, bar.advance, seed)
    rated = norms if "norms" in score.needs else weights
    return {
        name: WeightProblem(
            weights[name].layer, network.tensor(name), **found.of(name), norms=norms.get(name), seed=seed + 1000 * k
        )
        for k, name in enumerate(rated)
    }


def _round(
    step: Prune, network: Network, weights: Mapping[str, Weight], problems: Mapping[str, WeightProblem], part: float
) -> Network:
    """The network with the zeros of one round; what is zero stays so."""
    score = made(WEIGHT_SCORES, step.score, "score")
    losses = {name: score(problem) for name, problem in problems.items()}
    gone = {name: problem.weight == 0 for name, problem in problems.items()}
    if step.pattern is not None:
        n, m = step.pattern
        now = (m - round((m - n) * part), m)
        masks = kept_of_each(losses, now, {name: weights[name].inputs for name in losses}, gone)
    else:
        share = 1 - (1 - step.amount[1]) ** part
        masks = kept(losses, share, together=score.comparable, gone=gone, most=_most(step))
    found = network.edit()
    for name, problem in problems.items():
        set_tensor(found, name, score.updated(problem, masks[name] & ~gone[name]))
    return finish(found)
