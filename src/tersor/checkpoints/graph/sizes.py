"""A run of a graph on tensors without memory, so that nothing invalid or too large is executed or allocated."""

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from tersor.checkpoints.graph.building import arguments_of, is_number
from tersor.network.explain import summary
from tersor.network.network import Network, call, walk

# Bytes of one value if inputs and weights are small; otherwise FACTOR times theirs.
MAX_VALUE = 1 << 30
FACTOR = 64
MAX_PARTS = 1 << 16
# Arguments by which PyTorch divides, or that would cause an endless loop; and those that make results random.
_POSITIVE = frozenset(
    "stride dilation groups num_groups kernel_size step chunks sections split_size upscale_factor downscale_factor "
    "block_size output_size_factor num_layers".split()
)
# Kernels that divide by the number of elements.
_FILLED = frozenset({"aten::_weight_norm"})
_FALSE = frozenset("train training".split())
_PARTS = {
    "unbind": lambda size, argument: size,
    "split": lambda size, argument: size / argument,
    "unsafe_split": lambda size, argument: size / argument,
    "chunk": lambda size, argument: argument,
    "unsafe_chunk": lambda size, argument: argument,
    "tensor_split": lambda size, argument: argument,
    "hsplit": lambda size, argument: argument,
    "vsplit": lambda size, argument: argument,
    "dsplit": lambda size, argument: argument,
}


def check_sizes(network: Network) -> None:
    """Run the network on meta tensors.

    Raises:
        ValueError: an operator rejects its arguments, or a value is too large; the message names the node.
    """
    tensors = {name: tensor.to("meta") for name, tensor in network.tensors()}
    inputs = tuple(x.to("meta") for x in network.example)
    size = sum(x.numel() * x.element_size() for x in (*tensors.values(), *inputs))
    limit = max(MAX_VALUE, FACTOR * size)

    def run(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            value = _without_memory(node, args, kwargs)
        except Exception as error:
            said = f"the node {node.name}, {node.target}, does not take its arguments: {summary(error)}"
            raise ValueError(said) from error
        for part in _parts(value):
            _check_value(node, part, limit)
        return value

    walk(network, inputs, run=run, tensors=tensors)


def _without_memory(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operator on the meta device."""
    target: Any = node.target
    if target is operator.getitem:
        if len(args) != 2 or kwargs or not isinstance(args[0], list | tuple | Tensor) or type(args[1]) is not int:
            raise ValueError("it takes one of several values by its number")
        return target(*args)
    if not isinstance(target, torch._ops.OpOverload):
        if kwargs or not all(is_number(value) for value in args):
            raise ValueError("it takes numbers and tensors")
        return target(*args)
    given = arguments_of(target, args, kwargs)
    for argument in target._schema.arguments:
        if argument.name in given:
            _check_kind(argument.name, given[argument.name], str(argument.real_type))
            _check_argument(argument.name, given[argument.name])
    if target._schema.name in _FILLED and any(isinstance(v, Tensor) and not v.numel() for v in args):
        raise ValueError("it takes no tensors without elements")
    _check_count(target._schema.name.removeprefix("aten::"), args)
    names = [argument.name for argument in target._schema.arguments]
    if "device" in names:
        place = names.index("device")
        if len(args) > place:
            args = (*args[:place], torch.device("meta"), *args[place + 1 :])
        else:
            kwargs = {**kwargs, "device": torch.device("meta")}
    return call(node, args, kwargs)


# The values of each kind of argument; PyTorch itself accepts a number as dtype, and some crash the process.
_KINDS: dict[str, Any] = {
    "Tensor": Tensor | int | float,
    "int": int,
    "SymInt": int,
    "float": int | float,
    "number": int | float,
    "Scalar": int | float,
    "bool": bool,
    "str": str,
    "ScalarType": torch.dtype,
    "Device": torch.device,
    "Layout": torch.layout,
    "MemoryFormat": torch.memory_format,
}


def _check_kind(name: str, value: Any, kind: str) -> None:
    optional = kind.startswith("Optional[")
    kind = kind[len("Optional[") : -1] if optional else kind
    if value is None and optional:
        return
    inner = kind[len("List[") : -1] if kind.startswith("List[") else None
    if inner is not None and isinstance(value, list | tuple):
        for part in value:
            _check_kind(name, part, inner)
    elif not isinstance(value, _KINDS.get(inner or kind, ())):
        raise ValueError(f"{name} is a {type(value).__name__}, and must be a {kind}")


def _check_argument(name: str, value: Any) -> None:
    numbers = [v for v in (value if isinstance(value, list | tuple) else [value]) if type(v) in (int, float)]
    if name in _POSITIVE and any(v <= 0 for v in numbers):
        raise ValueError(f"{name} is {value}, and must be above 0")
    if any(isinstance(v, int) and abs(v) >= 1 << 63 for v in numbers):
        raise ValueError(f"{name} is {str(value)[:100]}, beyond 64 bits")
    if name in _FALSE and value:
        raise ValueError(f"{name} is set: a saved network is not trained")
    if isinstance(value, torch.device) and value.type == "meta":
        raise ValueError(f"{name} is the device meta")


def _check_count(name: str, args: tuple[Any, ...]) -> None:
    """Reject an operator that would create a huge number of small tensors."""
    if name not in _PARTS or not isinstance(args[0], Tensor):
        return
    argument = next((a for a in args[1:2] if type(a) is int and a > 0), 1)
    for size in args[0].shape or [1]:
        if _PARTS[name](size, argument) > MAX_PARTS:
            raise ValueError(f"it would make more than {MAX_PARTS} parts")


def _parts(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _check_value(node: fx.Node, value: Any, limit: int) -> None:
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise ValueError(f"the node {node.name}, {node.target}, leaves the device")
        # Sizes of 0 count as 1: some operators loop over them even without elements.
        size = math.prod(max(n, 1) for n in value.shape) * value.element_size()
        if size > limit:
            raise ValueError(
                f"the node {node.name}, {node.target}, has {size} bytes, more than the {limit} that a network of these "
                "inputs and weights may have"
            )
    elif value is not None and not isinstance(value, bool) and not is_number(value):
        raise ValueError(f"the node {node.name}, {node.target}, gives a {type(value).__name__} beyond what is saved")


