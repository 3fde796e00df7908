"""The float tensor that a quantized weight represents, as seen by code that reads ``layer.weight``."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.errors import NumericsError

# Attributes that are available without computing the values.
_NAMES = ("dtype", "device", "shape", "ndim", "layout", "requires_grad", "is_leaf")
_KNOWN = frozenset(
    [getattr(Tensor, name).__get__ for name in _NAMES]
    + [Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.element_size]
)


class DequantizedWeight(Tensor):
    """A weight in float, computed when an operator reads it. A write would be lost, so it raises a NumericsError.

    Parents with a fused path (``nn.TransformerEncoderLayer``) do not take that path with such a tensor: they call
    the layer.
    """

    _compute: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls: type["DequantizedWeight"],
        shape: Iterable[int],
        dtype: torch.dtype,
        device: torch.device,
        compute: Callable[[], Tensor],
    ) -> "DequantizedWeight":
        weight = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)  # type: ignore[attr-defined]
        weight._compute = compute
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {}) if func in _KNOWN else _on_values(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _on_values(func, args, kwargs or {})


def _on_values(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if getattr(func, "__name__", "") == "__set__" and not (args[1] is None or args[1] is False):
        raise refused()
    read: list[tuple[Tensor, int]] = []

    def values(weight: DequantizedWeight) -> Tensor:
        # Outside of inference mode, where writes are not counted.
        with torch.inference_mode(False), torch.no_grad():
            tensor = weight._compute()
        read.append((tensor, tensor._version))
        return tensor

    args, kwargs = pytree.tree_map_only(DequantizedWeight, values, (args, kwargs))
    result = func(*args, **kwargs)
    if any(tensor._version != version or tensor.requires_grad for tensor, version in read):
        raise refused()
    if isinstance(result, np.ndarray):
        result.setflags(write=False)
    memory = {_memory(tensor) for tensor, _ in read}
    # Tensors that share the memory of a weight must not be written either.
    return pytree.tree_map_only(Tensor, lambda t: _readonly(t) if _memory(t) in memory else t, result)


def _readonly(tensor: Tensor) -> DequantizedWeight:
    return DequantizedWeight(tensor.shape, tensor.dtype, tensor.device, lambda: tensor)


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # sparse tensors have no such storage and share none
        return id(tensor)


def refused() -> NumericsError:
    """The error of a write to a quantized weight."""
    return NumericsError(
        "the weight of a quantized layer cannot be written: the layer computes with its codes, and the change would be "
        "lost. Change the weight of the float model (merge adapters there) and quantize that again"
    )
