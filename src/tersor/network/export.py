"""``torch.export`` of a model, with its results flat, and the form in which the model gives them."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.network.signature import Signature
from tersor.network.structure import Structure
from tersor.process import quiet


def export(
    model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...], dynamic: bool
) -> tuple[Any, Signature]:
    """The exported program, whose results are tensors alone, and how the model is called and what it returns."""
    with quiet():  # the first call imports modules that set warning filters
        batch = torch.export.Dim("batch", min=1)
    shapes: list[Any] = pytree.tree_map(
        lambda v: {0: batch} if dynamic and isinstance(v, Tensor) and v.ndim else None, list(values)
    )
    spec: Any = dict(zip(names, shapes, strict=True)) if names else tuple(shapes)
    parameters = list(inspect.signature(model.forward).parameters.values())
    if not names and parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        spec = (spec,)
    args = () if names else values
    kwargs = dict(zip(names, values, strict=True)) if names else {}
    if cache_arguments := without_cache(model, values, names):
        kwargs |= cache_arguments
        named = [p.name for p in parameters]
        spec = dict(zip(named, spec, strict=False)) if isinstance(spec, tuple) else spec
        spec |= dict.fromkeys(cache_arguments)
    found: list[Structure] = []

    def flatten(module: nn.Module, inputs: Any, result: Any) -> tuple[Tensor, ...]:
        structure, tensors = Structure.of(result)
        found.append(structure)
        return tuple(tensors)

    hook = model.register_forward_hook(flatten)
    try:
        with quiet(), torch.no_grad():
            shapes_of = spec if dynamic else None
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes_of, strict=False)
    finally:
        hook.remove()
    arguments, _ = Structure.of(values, once=False)
    return program, Signature(_parameters(model, values, names), arguments, found[-1])


def without_cache(model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...]) -> dict[str, bool]:
    """The argument that keeps transformers' language models from returning a cache, which is not a tensor."""
    parameters = list(inspect.signature(model.forward).parameters)
    given = "use_cache" in (names or parameters[: len(values)])
    return {"use_cache": False} if "use_cache" in parameters and not given else {}


def _parameters(model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the example's arguments."""
    if names:
        return names
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in by_position]
    return tuple(found[k] if k < len(found) else str(k) for k in range(len(values)))
