"""The groups that a step may take from: those that layers, patterns and scores allow."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from tersor.errors import RecipeError
from tersor.network.groups import Group, Structure, checked, find
from tersor.network.network import Network
from tersor.recipe import Prune
from tersor.tables import nearest


def groups_for(step: Prune, network: Network, seed: int) -> Structure:
    """The checked groups of a network, without those that the step leaves alone.

    Raises:
        RecipeError: a pattern fits no layer, or only layers none of whose channels can go, with the reason; or nothing
            is left that can go.
    """
    structure = checked(find(network), seed)
    named = {id(g): layers_of_group(g, network) for g in structure.groups}
    free = {layer for layers in named.values() for layer in layers}
    fixed = {layer_of(name): why for (name, dim), why in structure.fixed.items() if dim == 0}
    for pattern in (*step.layers, *step.keep):
        if any(fnmatchcase(layer, pattern) for layer in free):
            continue
        stuck = [layer for layer in fixed if fnmatchcase(layer, pattern)]
        if not stuck:
            known = sorted({*free, *fixed})
            raise RecipeError(f"no layer is called {pattern!r}{nearest(pattern, known)}; there are {some(known)}")
        if pattern in step.layers:
            raise RecipeError(f"{stuck[0]} cannot lose outputs: {fixed[stuck[0]]}; leave {pattern!r} out of `layers`")
    allowed = tuple(g for g in structure.groups if asked(step, named[id(g)]))
    if not allowed and "branches" not in step.structure:
        why = next(iter(structure.fixed.values()), "it has no layers")
        raise RecipeError(f"nothing of this network can go that the step `prune` allows: {why}")
    return replace(structure, groups=allowed)


def asked(step: Prune, layers: Iterable[str]) -> bool:
    """Whether a step may take from these layers."""
    names = list(layers)
    return (not step.layers or _any(names, step.layers)) and not _any(names, step.keep)


def layer_of(tensor: str) -> str:
    """The layer that a tensor belongs to.

    >>> layer_of("layer1.0.conv1.weight")
    'layer1.0.conv1'
    """
    return tensor.rpartition(".")[0] or tensor


def layers_of_group(group: Group, network: Network) -> tuple[str, ...]:
    """The layers whose outputs a group holds."""
    weights = [name for name, dim in group.sites if dim == 0 and network.tensor(name).ndim > 1]
    return tuple(dict.fromkeys(map(layer_of, weights))) or (layer_of(group.name),)


def some(names: Iterable[str], count: int = 6) -> str:
    """The first names, and how many more there are.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    found = list(names)
    more = f" and {len(found) - count} more" if len(found) > count else ""
    return ", ".join(found[:count]) + more


def _any(layers: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(layer, pattern) for layer in layers for pattern in patterns)


@dataclass(frozen=True)
class Width:
    """How many outputs of a group's layers were left, or how much rank of a layer; ``tensor`` names the group."""

    layers: tuple[str, ...]
    before: int
    after: int
    tensor: str = ""
