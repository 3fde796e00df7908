"""``torch.export`` of a model with flat results, and the structure in which the model returns them."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.errors import CaptureError, EngineError
from tersor.network.network import Network, op_name, title
from tersor.network.rewrites.unroll import RECURRENT, why_not
from tersor.network.signature import Signature
from tersor.network.structure import Structure
from tersor.process import quiet

Free = Mapping[str, Mapping[int, str]]
"""For arguments by name: the dimensions that vary besides the batch, with the names of their sizes."""


def check_free(free: Free, parameters: Sequence[str], values: Sequence[Any]) -> None:
    """Reject free dimensions that the example does not have.

    Raises:
        CaptureError: naming the argument and the dimension.
    """
    for name, dims in free.items():
        if name not in parameters:
            raise CaptureError(f"Task.dynamic names {name}, but the example's arguments are {', '.join(parameters)}")
        value = values[parameters.index(name)]
        if not isinstance(value, Tensor):
            raise CaptureError(f"Task.dynamic names {name}, which is a {type(value).__name__}, not a tensor")
        for dim, size in dims.items():
            if dim >= value.ndim:
                raise CaptureError(f"Task.dynamic frees dimension {dim} of {name}, which has {value.ndim} dimensions")
            if value.shape[dim] < 2:
                raise CaptureError(
                    f"dimension {dim} of {name} ({size}) is {value.shape[dim]} in the example: to be free it must be "
                    "at least 2 there"
                )


def freed(
    network: Network, values: Sequence[Any], signature: Signature, free: Free
) -> tuple[Mapping[int, str], ...]:
    """The free dimensions of each input of a network.

    Raises:
        CaptureError: the model's own code fixes one.
    """
    if not free:
        return ()
    found: list[Mapping[int, str]] = []
    inputs = [n for n in network.graph.nodes if n.op == "placeholder"]
    for name, value in zip(signature.parameters, values, strict=True):
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor):
                dims, shape = free.get(name, {}), inputs[len(found)].meta["val"].shape
                for dim, size in dims.items():
                    if str(shape[dim]).isdigit():  # a size fixed by export may still be a SymInt
                        raise CaptureError(
                            f"dimension {dim} of {name} ({size}) cannot be free: the model's own code fixes it to "
                            f"{shape[dim]}, as recurrent layers do; leave it out of Task.dynamic, or read the size "
                            "from the input"
                        )
                found.append(dict(dims))
    return tuple(found)


def dynamic_shapes(network: Network) -> tuple[dict[int, Any] | None, ...]:
    """The ``dynamic_shapes`` for ``torch.export`` of the inputs of a network that is exported again."""
    batch = torch.export.Dim("batch", min=1)
    found = []
    for k in range(len(network.example)):
        dims = network.varying(k)
        found.append({dim: batch if dim == 0 else torch.export.Dim.AUTO for dim in dims} or None)
    return tuple(found)


def exported(network: Network) -> Any:
    """``torch.export`` of a network's graph, which the engines' converters read, with the captured dynamic
    dimensions.

    Raises:
        EngineError: the steps of a recurrent layer are the batch, so no engine knows their number.
    """
    shapes = dynamic_shapes(network)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(network.module, network.example, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        layers = [n for n in network.operators() if op_name(n) in RECURRENT]
        for why, node in ((why_not(n), n) for n in layers):
            if why == "its length is not fixed":
                raise EngineError(
                    f"{title(node)} takes the first dimension of an input, which is the batch, for time, so {why}: put "
                    "the batch first (batch_first=True, and x.unsqueeze(0) for one sequence), or use "
                    "tersor.quantize_dynamic, which takes any length"
                ) from error
        raise


def export(
    model: nn.Module,
    values: tuple[Any, ...],
    names: tuple[str, ...],
    dynamic: bool,
    free: Free,
) -> tuple[Any, Signature]:
    """The exported program, which returns only tensors, and the signature of the model."""
    with quiet():  # the first call imports modules that set warning filters
        batch = torch.export.Dim("batch", min=1)
    titles = parameters_of(model, values, names)
    shapes: list[Any] = pytree.tree_map(
        lambda v: {0: batch} if dynamic and isinstance(v, Tensor) and v.ndim else None, list(values)
    )
    for k, name in enumerate(titles):
        if dims := free.get(name):
            shapes[k] = {**(shapes[k] or {}), **dict.fromkeys(dims, torch.export.Dim.AUTO)}
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
            shapes_of = spec if dynamic or free else None
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes_of, strict=False)
    finally:
        hook.remove()
    arguments, _ = Structure.of(values, once=False)
    return program, Signature(titles, arguments, found[-1])


def without_cache(model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...]) -> dict[str, bool]:
    """The argument that keeps transformers' language models from returning a cache, which is not a tensor."""
    parameters = list(inspect.signature(model.forward).parameters)
    given = "use_cache" in (names or parameters[: len(values)])
    return {"use_cache": False} if "use_cache" in parameters and not given else {}


def parameters_of(model: nn.Module, values: tuple[Any, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the example's arguments."""
    if names:
        return names
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in by_position]
    return tuple(found[k] if k < len(found) else str(k) for k in range(len(values)))
