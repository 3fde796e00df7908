"""`narrow`: a model of the user's own class with the tensors that pruning left, if its code allows that."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.errors import RewriteError, TaskError
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.graph.pruning.named.integers import Changes, candidates, forget, scopes, set_integers
from tersor.pipeline.graph.pruning.named.narrowed import Narrowed, fingerprint

APART = 1e-4
"""The largest difference of an output from the graph's, over the largest value: other layouts take other kernels."""
_POINTS: dict[type[nn.Module], int] = {nn.InstanceNorm1d: 1, nn.InstanceNorm3d: 3}  # dimensions behind the channels
# For classes of torch: which of their integers is which size of which tensor.
_SIZES: dict[type[nn.Module], dict[str, tuple[str, int]]] = {
    nn.Linear: {"out_features": ("weight", 0), "in_features": ("weight", 1)},
    nn.Embedding: {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
    nn.modules.batchnorm._NormBase: {"num_features": ("running_mean", 0)},
    nn.GroupNorm: {"num_channels": ("weight", 0)},
    nn.PReLU: {"num_parameters": ("weight", 0)},
    nn.RNNBase: {"hidden_size": ("weight_hh_l0", 1), "input_size": ("weight_ih_l0", 1)},
}


def narrow(model: nn.Module, pruned: "Compressed | Narrowed | str | Path") -> nn.Module:
    """A copy of a model, as narrow as pruning left it: of its own class, with its own names.

    Parameters and buffers are replaced by name. The integers of torch's layers follow, and integers of the model's own
    modules that were equal to a size that changed; where a size stands for two things, both ways are tried. The copy
    must compute what the pruned graph computes. So a fresh, untrained instance of the class also takes a saved pruning.

    Args:
        model: the model that was pruned, or another instance of its class.
        pruned: the result of ``compress``, or a folder written by ``Compressed.narrowed.save``.

    Raises:
        TaskError: the model has other names or shapes than the one that was pruned.
        RewriteError: its code fixes sizes, or the graph lost a branch; the message names the module. Use the graph.

    >>> import tersor
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> data = [(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)),)]
    >>> task = tersor.Task("tiny", net, (torch.zeros(2, 4),), lambda: data)
    >>> recipe = tersor.Recipe(steps=[{"prune": {"target": "50% channels"}}, {"quantize": {}}])
    >>> done = tersor.compress(task, recipe, engine="torch", report=False)
    >>> narrow(net, done)
    Sequential(
      (0): Linear(in_features=4, out_features=4, bias=True)
      (1): ReLU()
      (2): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    given = pruned if isinstance(pruned, Narrowed) else _given(pruned)
    _check(model, given)
    small = copy.deepcopy(model).eval()
    changes = _replaced(small, given)
    for name, module in small.named_modules():
        _resize_known(module, name, given)
    certain, doubtful = candidates(small, changes)
    faults = list[Fault]()
    for flipped in chain.from_iterable(combinations(doubtful, k) for k in range(3)):
        set_integers(small, changes, certain.symmetric_difference(flipped))
        fault = _compare(small, given)
        if fault is None:
            forget(small)
            return small.train(model.training)
        faults.append(fault)
    raise RewriteError(next((f.text for f in faults if f.ran), faults[0].text))


@dataclass(frozen=True)
class Fault:
    """Why a narrow model is not the graph: it does not run, or computes something else."""

    text: str
    ran: bool = False


def _given(pruned: "Compressed | str | Path") -> Narrowed:
    return pruned.narrowed if isinstance(pruned, Compressed) else Narrowed.load(pruned)


def _check(model: nn.Module, given: Narrowed) -> None:
    if given.branches:
        raise RewriteError(
            f"{given.branches[0]} went as a whole, became two layers or was rearranged, but the model's own code runs "
            "it: use the graph, or prune `channels` alone"
        )
    own = dict(_tensors(model))
    missing = [name for name in given.tensors if name not in own]
    if missing:
        raise TaskError(
            f"the model has no tensor {missing[0]}, which the pruned network has: pass the model that was pruned, or "
            "another instance of its class"
        )
    if fingerprint({name: own[name] for name in given.tensors}) != given.base:
        raise TaskError("the model's tensors have other shapes or dtypes than those of the model that was pruned")
    for name, tensor in given.tensors.items():
        sizes = list(own[name].shape)
        for dim, left in given.kept.get(name, {}).items():
            if not 0 <= dim < len(sizes) or left != sorted(set(left)) or left[-1:] >= [sizes[dim]]:
                raise TaskError(f"the pruning of {name} keeps positions of dimension {dim} that it does not have")
            sizes[dim] = len(left)
        if list(tensor.shape) != sizes or tensor.dtype != own[name].dtype:
            raise TaskError(
                f"{name} is {list(tensor.shape)} of {tensor.dtype}, and what the pruning kept of it is {sizes} of "
                f"{own[name].dtype}: it belongs to another pruning"
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _replaced(small: nn.Module, given: Narrowed) -> Changes:
    """Replace the tensors; returns for each module the sizes that changed in it, and what became of each."""
    old, changes = dict(_tensors(small)), Changes()
    places = defaultdict[int, list[str]](list)
    for name, tensor in old.items():
        places[id(tensor)].append(name)
    for name, tensor in given.tensors.items():
        before = old[name]
        new: Any = tensor.detach().clone().to(before.device)
        if isinstance(before, nn.Parameter):
            new = nn.Parameter(new, before.requires_grad)
        for place in places[id(before)]:
            path, _, leaf = place.rpartition(".")
            owner = small.get_submodule(path)
            (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = new
            for one, other in zip(before.shape, tensor.shape, strict=True):
                for scope in scopes(path):
                    changes.setdefault(scope, {}).setdefault(one, set()).add(other)
    for name, (before, after) in given.sizes.items():
        for scope in scopes(name.rpartition(".")[0]):
            changes.setdefault(scope, {}).setdefault(before, set()).add(after)
    return changes


def _resize_known(module: nn.Module, name: str, given: Narrowed) -> None:
    """The integers of torch's own layers."""
    for kind, integers in _SIZES.items():
        for attribute, (leaf, dim) in integers.items() if isinstance(module, kind) else ():
            tensor = getattr(module, leaf, None)
            tensor = getattr(module, "weight", None) if tensor is None else tensor
            if isinstance(tensor, Tensor) and tensor.ndim > dim:
                setattr(module, attribute, tensor.shape[dim])
    if isinstance(module, nn.GroupNorm):
        module.num_groups = given.groups.get(f"{name}.weight", module.num_groups)
    if isinstance(module, nn.modules.conv._ConvNd):
        module.groups = given.groups.get(f"{name}.weight", module.groups)
        one, other = module.weight.shape[:2]
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        module.in_channels, module.out_channels = (
            (one, other * module.groups) if transposed else (other * module.groups, one)
        )


def _enter(module: nn.Module, inputs: tuple[Any, ...], name: str, inside: list[str]) -> None:
    """Note which module runs; the integer of a norm without tensors is that of what it gets."""
    inside.append(name)
    bare = isinstance(module, nn.modules.instancenorm._InstanceNorm) and getattr(module, "weight", None) is None
    if bare and getattr(module, "running_mean", None) is None and isinstance(inputs[0], Tensor):
        module.__dict__["num_features"] = inputs[0].shape[-1 - _POINTS.get(type(module), 2)]


def _leave(inside: list[str]) -> None:
    inside.pop()


def _compare(small: nn.Module, given: Narrowed) -> Fault | None:
    """Run the example; None if it gives what the graph gave."""
    inside = list[str]()
    hooks = [
        m.register_forward_pre_hook(lambda m, x, n=name: _enter(m, x, n, inside)) for name, m in small.named_modules()
    ] + [m.register_forward_hook(lambda _m, _x, _y: _leave(inside)) for m in small.modules()]
    inputs = tuple(t.clone() for t in given.inputs)
    keywords = dict(zip(given.names, inputs, strict=True)) if given.names else {}
    try:
        with torch.no_grad():
            out = small(**keywords) if keywords else small(*inputs)
    except Exception as error:  # of the model's own code, which may check sizes in its own way
        where = inside[-1] if inside else ""
        kind, told = type(small.get_submodule(where)).__name__, (str(error) or type(error).__name__).splitlines()[0]
        return Fault(
            f"the code of {where or 'the model'} ({kind}) fixes a size that pruning changed, in a form that is not an "
            f"attribute equal to it: {told}; use the graph, or take such sizes from the tensors"
        )
    finally:
        for hook in hooks:
            hook.remove()
    found = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
    if len(found) < len(given.outputs):
        return Fault(f"the narrow model returns {len(found)} tensors, the pruned graph {len(given.outputs)}", ran=True)
    for number, (one, other) in enumerate(zip(given.outputs, found, strict=False)):
        size = max(float(one.abs().max()), 1e-9) if one.numel() else 1.0
        apart = float((one - other).abs().max()) / size if one.shape == other.shape and one.numel() else 0.0
        if one.shape != other.shape or not apart <= APART:
            return Fault(
                f"the narrow model's output {number} is not that of the pruned graph (difference {apart:.2g} of the "
                "largest value): its code computes with sizes that pruning changed, such as the default scale of "
                "attention, which is that of the size of a head; use the graph",
                ran=True,
            )
    return None
