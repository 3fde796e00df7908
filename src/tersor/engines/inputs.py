"""The inputs of a runner, checked here for every engine, so that all of them reject the same with the same message."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.errors import CaptureError, EngineError
from tersor.network.network import Network, check_count
from tersor.network.structure import tensor_of


@dataclass(frozen=True)
class Input:
    """One input: its name, its dtype by PyTorch's name (``float32``), and its shape; None stands for any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def of_network(network: Network) -> tuple[Input, ...]:
    """The inputs of a network."""
    return tuple(
        Input(
            name,
            str(x.dtype).removeprefix("torch."),
            tuple(None if dim in network.varying(k) else int(n) for dim, n in enumerate(x.shape)),
        )
        for k, (name, x) in enumerate(zip(network.input_names, network.example, strict=True))
    )


def of_manifest(inputs: Iterable[Mapping[str, Any]]) -> tuple[Input, ...]:
    """The inputs of a manifest."""
    return tuple(Input(i["name"], i["dtype"], tuple(i["shape"])) for i in inputs)


def taken(given: Sequence[Any], wanted: Sequence[Input]) -> tuple[Tensor, ...]:
    """The inputs, including arrays, as tensors, if the network accepts them.

    Raises:
        EngineError: naming the input, what was given and what is expected.
    """
    if len(given) != len(wanted):
        check_count(given, [w.name for w in wanted])
    tensors = tuple(_tensor(x, w) for x, w in zip(given, wanted, strict=True))
    said = next((said for x, w in zip(tensors, wanted, strict=True) if (said := _unfit(x, w))), None)
    if said is None and len(wanted) > 1:
        rows = {w.name: int(x.shape[0]) for x, w in zip(tensors, wanted, strict=True) if w.shape and w.shape[0] is None}
        if len(set(rows.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in rows.items())
            said = f"the inputs have different batches ({told}): give as many rows of each"
    if said is not None:
        raise EngineError(f"the network refuses inputs of shapes {[tuple(x.shape) for x in tensors]}: {said}")
    return tensors


def check_finite(given: Sequence[Any], wanted: Sequence[Input]) -> None:
    """Reject NaN and infinity, which engines turn into other numbers.

    Raises:
        EngineError: naming the input and their number.
    """
    for x, w in zip(taken(given, wanted), wanted, strict=True):
        if x.is_floating_point() and (count := int((~x.isfinite()).sum())):
            raise EngineError(f"the input {w.name} holds NaN or infinity in {count} of {x.numel()} values: clean it")


def _tensor(value: Any, wanted: Input) -> Tensor:
    if isinstance(value, (np.ndarray, np.generic)):
        try:
            value = tensor_of(np.asarray(value))
        except CaptureError as error:
            raise EngineError(f"the input {wanted.name} is {error}; the network takes {wanted.dtype}") from error
    if not isinstance(value, Tensor):
        raise EngineError(
            f"the input {wanted.name} is {value!r:.60}, a {type(value).__name__}: give a tensor or an array of "
            f"{wanted.dtype}"
        )
    return value


def _unfit(x: Tensor, wanted: Input) -> str | None:
    """Why the network does not accept a tensor, or None if it does."""
    return _misfit(x.dtype, x.shape, x.device.type, x.layout, wanted)


@lru_cache(maxsize=1024)  # a call of a small network takes about ten microseconds
def _misfit(
    dtype: torch.dtype, shape: torch.Size, device: str, layout: torch.layout, wanted: Input
) -> str | None:
    name, named = wanted.name, str(dtype).removeprefix("torch.")
    if named != wanted.dtype:
        return f"the input {name} is {dtype}, the network takes {wanted.dtype}: convert it"
    if device != "cpu" or layout != torch.strided:
        return f"the input {name} is on {device} in the layout {layout}: give a dense tensor on the CPU"
    if len(shape) != len(wanted.shape):
        found = f"{len(wanted.shape)}: {list(wanted.shape)}"
        batch = "; the first one is the batch, x.unsqueeze(0) adds it" if len(shape) + 1 == len(wanted.shape) else ""
        return f"the input {name} has {len(shape)} dimensions, the network takes {found}{batch}"
    for dim, (size, fixed) in enumerate(zip(shape, wanted.shape, strict=True)):
        if fixed is not None and size != fixed:
            remedy = f'free it with Task(dynamic={{"{name}": {{{dim}: "size"}}}}), or compress for this size'
            said = f"the input {name} has the size {size} in dimension {dim}, the network takes {fixed}: "
            return said + (remedy if dim else "its own code fixes the batch")
        if fixed is None and not size:
            return f"the input {name} has the size 0 in dimension {dim}: give at least one"
    return None
