"""The experts of a model, and the routers that choose between them, found by the number of experts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Experts:
    """The experts and routers found.

    Args:
        stacks: the names of the modules that hold the experts of one layer.
        routers: the names of the matrices beside them that score the experts, or the one that all tokens pass.
    """

    stacks: frozenset[str] = frozenset()
    routers: frozenset[str] = frozenset()

    def hold(self, parameter: str) -> bool:
        """Whether a parameter belongs to an expert."""
        return any(parameter.startswith(f"{stack}.") for stack in self.stacks)


def find_experts(model: nn.Module, config: Mapping[str, Any], inside: str = "") -> Experts:
    """The experts of the modules whose names start with ``inside``, and their routers, given the configuration.

    Experts are parameters of three dimensions or lists of modules, as many as the configuration states, or a module
    called ``experts``. A router is a matrix beside them with an output for each expert, or with one output.

    >>> layer = nn.ModuleDict({"gate": nn.Linear(8, 4), "up": nn.Linear(8, 6)})
    >>> layer["all"] = nn.ModuleList(nn.Linear(8, 6) for _ in range(4))
    >>> sorted(find_experts(nn.ModuleDict({"mlp": layer}), {"num_experts": 4}).routers)
    ['mlp.gate.weight']
    """
    counts = set(_counts(config))
    stacks = {name for name, m in model.named_modules() if name.startswith(inside) and _is_stack(name, m, counts)}
    # A stack inside another is part of it.
    stacks = {s for s in stacks if not any(s.startswith(f"{outer}.") for outer in stacks)}
    owners = {stack.rpartition(".")[0] for stack in stacks}
    routers = set()
    for owner in owners:
        for name, parameter in model.get_submodule(owner).named_parameters(prefix=owner):
            expert = any(name.startswith(f"{stack}.") for stack in stacks)
            if not expert and parameter.ndim == 2 and parameter.shape[0] in counts | {1}:
                routers.add(name)
    return Experts(frozenset(stacks), frozenset(routers))


def _is_stack(name: str, module: nn.Module, counts: set[int]) -> bool:
    if not counts or isinstance(module, nn.Conv1d):
        return False
    if name.rpartition(".")[2] == "experts":
        return True
    if isinstance(module, nn.ModuleList):
        return len(module) in counts
    return any(p.ndim == 3 and p.shape[0] in counts for p in module.parameters(recurse=False))


def _counts(config: Mapping[Any, Any]) -> Iterator[int]:
    """The numbers of experts that a configuration states, in all of its parts."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
        elif str(key).endswith("experts") and "shared" not in key and isinstance(value, int) and value > 1:
            yield value
