"""What the parameters of a student are in its network, and what training made zero."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from tersor.errors import RecipeError
from tersor.network.groups import find, macs, parameters
from tersor.network.network import Network, op_name
from tersor.pipeline.graph.pruning.prunable import Weight, chosen, weights_of
from tersor.pipeline.graph.pruning.record import Pruned, Zeroed, kept_names
from tersor.pipeline.graph.pruning.weights import checked_weights
from tersor.pipeline.subject import Subject
from tersor.recipe import Prune, Recipe, Train
from tersor.solvers.weights.selection import check_pattern, check_share
from tersor.tables import made
from tersor.training.proximal import GroupLasso
from tersor.training.proximal.pulls import PULLS
from tersor.training.roles import Roles


def roles_of(step: Train, subject: Subject, network: Network, student: nn.Module) -> Roles:
    """What a step `train` reads of the float network.

    Raises:
        RecipeError: patterns of ``sparsity`` fit nothing, or name a frozen layer.
    """
    weights = _weights(step, network)
    if step.sparsity is not None and step.sparsity.layers:
        frozen = {name for name, p in student.named_parameters() if not p.requires_grad}
        if stuck := next((w.layer for name, w in weights.items() if name in frozen), None):
            raise RecipeError(
                f"`sparsity`: the weights of {stuck} are frozen: set requires_grad, or leave the layer out of `layers`"
            )
    pull = None if step.proximal is None else made(PULLS, step.proximal, "proximal")
    together = isinstance(pull, GroupLasso) and pull.over == "channels"
    return Roles(
        {name: weight.inputs for name, weight in weights.items()},
        kept_names(subject.prunings),
        _scales(network),
        _channels(network) if together else (),
    )


def zeros_of_training(step: Train, network: Network, student: nn.Module) -> Pruned:
    """The record of a step with the option `sparsity`.

    Args:
        network: the float one.
    """
    assert step.sparsity is not None
    trained, weights = dict(student.named_parameters()), _weights(step, network)
    zeros = tuple(
        Zeroed(w.layer, name, trained[name].numel(), int((trained[name] == 0).sum()))
        for name, w in weights.items()
        if name in trained
    )
    products, values = macs(network), parameters(network)
    same = (products, products), (values, values)
    return Pruned(step.sparsity.target, *same, zeros=zeros, whole=weights_of(network)[1])


def check_zeros(recipe: Recipe, network: Network) -> None:
    """Refuse steps that cannot make or keep the zeros that they are asked for, before any of them runs.

    Args:
        network: as it was captured.

    Raises:
        RecipeError: naming the step, the layer and the remedy.
    """
    sparse: str | None = None
    for step in recipe.steps:
        if isinstance(step, Prune) and step.amount[0] == "weights":
            checked_weights(step, network)
            sparse = f"`prune: {{target: {step.target}}}`"
        elif isinstance(step, Prune) and sparse and step.repair is not None:
            raise RecipeError(
                f"the step `prune: {{target: {step.target}}}` repairs weights, and would fill the zeros of {sparse} "
                "before it: prune channels first, or with `repair: none`"
            )
        elif isinstance(step, Train) and step.sparsity is not None:
            _check(step, network)
            sparse = "`train: {sparsity: …}`"


def _check(step: Train, network: Network) -> None:
    asked, weights = step.sparsity, _weights(step, network)
    assert asked is not None
    if asked.ratio is not None:
        for name, weight in weights.items():
            check_pattern(weight.layer, network.tensor(name).shape, asked.ratio, weight.inputs)
        return
    sizes = {w.layer: network.tensor(name).numel() for name, w in weights.items()}
    check_share(sizes, asked.final, together=asked.scope == "global")


def _weights(step: Train, network: Network) -> dict[str, Weight]:
    if step.sparsity is None:
        return weights_of(network)[0]
    return chosen(network, step.sparsity.layers, step.sparsity.keep)[0]


def _scales(network: Network) -> frozenset[str]:
    """The scales of BatchNorms."""
    norms = (node.args[1] for node in network.operators() if op_name(node) == "batch_norm")
    return frozenset(str(g.target) for g in norms if isinstance(g, fx.Node) and g.op == "get_attr")


def _channels(network: Network) -> tuple[dict[tuple[str, int], Tensor], ...]:
    """For each group what writes its channels: outputs of weights, biases, shifts; not scales and statistics."""
    weights, found = weights_of(network)[0], []
    norms = [node for node in network.operators() if op_name(node) == "batch_norm"]
    others = {name for node in norms for name in _names((node.args[1], *node.args[3:5]))}
    for group in find(network).groups:
        own = {
            (name, dim): torch.from_numpy(places)
            for (name, dim), places in group.sites.items()
            if name not in others and dim == (weights[name].outputs if name in weights else 0)
            and network.tensor(name).is_floating_point()
        }  # fmt: skip
        if any(name in weights for name, _ in own):
            found.append(own)
    return tuple(found)


def _names(nodes: Iterable[object]) -> list[str]:
    return [str(node.target) for node in nodes if isinstance(node, fx.Node)]
