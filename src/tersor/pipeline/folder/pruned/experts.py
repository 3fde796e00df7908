"""Experts: what each gives to the output of its layer, routed; which stay; and how much of each makes up for others."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tersor.network.blocks.calls import call
from tersor.pipeline.folder.cuts.groups import Group
from tersor.pipeline.folder.pruned.observe import Arguments
from tersor.solvers.structured import GroupProblem, Moments, Ranking, Reader, Repair, Score

VALUES = 2**26
"""Outputs of all experts that are in memory at once."""
Call = tuple[tuple[Any, ...], dict[str, Any]]


def expert_parameters(group: Group, block: nn.Module) -> list[str]:
    """The parameters of the experts, without those of their router."""
    names = dict.fromkeys(site.parameter for site in group.sites)
    return [n for n in names if any(p.ndim == 3 for p in _owner(block, n).parameters(recurse=False))]


def rank(group: Group, block: nn.Module, score: Score, gram: Tensor | None, seed: int) -> Ranking:
    """In which order experts go: an atom's values are its weights, and its input is what it gives, routed."""
    written = tuple(block.get_parameter(n).detach().float().cpu().flatten(1) for n in expert_parameters(group, block))
    reader = Reader(torch.ones(1, group.count), torch.arange(group.count)[:, None], gram)
    return score(GroupProblem(group.name, written, readers=(reader,), seed=seed))


@torch.no_grad()
def moments_of(
    group: Group, block: nn.Module, runs: Iterable[tuple[Tensor, Arguments]], dense: tuple[Group, nn.Module] | None
) -> Moments:
    """The moments of what each expert gives, a row for each value of the layer's output.

    Args:
        runs: inputs and other arguments of the block.
        dense: the layer whose output shall be reached; None: the sum of all experts.
    """
    layer = block.get_submodule(group.name)
    names = [n.removeprefix(f"{group.name}.") for n in expert_parameters(group, block)]
    count, found = len(layer.get_parameter(names[0])), None
    for hidden, arguments in runs:
        for args, kwargs in _pieces(_calls(block, layer, hidden, arguments), count):
            rest = _only(layer, names, None, args, kwargs)
            parts = torch.stack([_only(layer, names, e, args, kwargs) - rest for e in range(count)], 1)
            wanted = parts.sum(1)
            if dense is not None:
                wanted = _output(dense[1].get_submodule(dense[0].name)(*args, **kwargs)).flatten().float() - rest
            found = found or Moments(count, 1)
            found.add(parts.cpu(), wanted[:, None].cpu())
    assert found is not None
    return found


@torch.no_grad()
def scale_experts(group: Group, block: nn.Module, last: str, moments: Moments, repair: Repair) -> Tensor:
    """Multiply what each expert gives by a factor, in place; the factors.

    Args:
        last: the parameter of the experts' last product.
    """
    factors, _ = repair(moments, torch.ones(1, moments.columns), shifted=False)
    for name in expert_parameters(group, block):
        if name == last or name.startswith(f"{last}_"):
            value = block.get_parameter(name).data
            value *= factors[0].to(value.device, value.dtype).view(-1, *[1] * (value.ndim - 1))
    return factors[0]


@contextmanager
def without(group: Group, block: nn.Module, gone: Tensor) -> Iterator[None]:
    """Inside, the router gives these experts no chance."""
    experts = set(expert_parameters(group, block))
    routers = [s.parameter for s in group.sites if s.parameter not in experts]
    weights = {block.get_parameter(n).data_ptr() for n in routers if block.get_parameter(n).ndim == 2}
    with _Without(weights, gone):
        yield


class _Without(TorchFunctionMode):
    def __init__(self, weights: set[int], gone: Tensor) -> None:
        super().__init__()
        self.weights, self.gone = weights, gone

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is nn.functional.linear:
            weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
            if weight.data_ptr() in self.weights:
                result = result.index_fill(-1, self.gone.to(result.device), -torch.inf)
        return result


def _calls(block: nn.Module, layer: nn.Module, hidden: Tensor, arguments: Arguments) -> list[Call]:
    found: list[Call] = []
    hook = layer.register_forward_pre_hook(lambda _, args, kwargs: found.append((args, kwargs)), with_kwargs=True)
    try:
        call(block, hidden, *arguments)
    finally:
        hook.remove()
    return found


def _pieces(calls: Iterable[Call], experts: int) -> Iterator[Call]:
    """The calls with fewer windows at a time."""
    for args, kwargs in calls:
        hidden = args[0] if args else kwargs["hidden_states"]
        size = max(1, VALUES // (experts * hidden[0].numel()))
        for piece in hidden.split(size):
            yield ((piece, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": piece})


def _only(layer: nn.Module, names: list[str], expert: int | None, args: tuple[Any, ...], kwargs: Any) -> Tensor:
    """The layer's output, flat, if all other experts give nothing."""
    values = {}
    for name in names:
        own = layer.get_parameter(name).detach()
        values[name] = torch.zeros_like(own)
        if expert is not None:
            values[name][expert] = own[expert]
    return _output(torch.func.functional_call(layer, values, args, kwargs)).flatten().float()


def _output(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _owner(block: nn.Module, parameter: str) -> nn.Module:
    return block.get_submodule(parameter.rpartition(".")[0])
