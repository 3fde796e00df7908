"""A pretended accelerator, for machines without one: it computes on the CPU, and refuses what a real one refuses.

Its tensors say that they are on ``privateuseone:0``. An operator that meets tensors of it and of the CPU fails, as do
``numpy()`` and, if asked, float64. So what runs on it, with the codes of the CPU, mixes no devices.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("privateuseone", 0)
# Operators that move values between devices, or that take indices from the CPU.
_MOVES = ("aten::copy_", "aten::_to_copy", "aten::to")
_INDEXES = ("aten::index", "aten::index_put_", "aten::index_put")


class There(Tensor):
    """A tensor on the pretended device; ``inner`` holds its values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "There":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    # What Python asks of a tensor's memory, which the wrapper has none of.
    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __format__(self, form: str) -> str:
        return format(self.inner, form)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"There({self.inner})"

    def __deepcopy__(self, memo: dict) -> Tensor:
        copy = There(self.inner.clone())
        return torch.nn.Parameter(copy, requires_grad=False) if isinstance(self, torch.nn.Parameter) else copy

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return There(self.inner)

    @data.setter
    def data(self, other: "There") -> None:
        self.inner = other.inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {}, float64=True)


class _Pretending(TorchDispatchMode):
    def __init__(self, float64: bool) -> None:
        super().__init__()
        self.float64 = float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {}, self.float64)


def _computed(func: Any, args: Any, kwargs: dict[str, Any], float64: bool) -> Any:
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = any(isinstance(x, There) for x in given)
    if there:
        _check_places(func, args, given)
    before, wanted = there, [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.device)]
    if wanted:
        there = wanted[0].type == DEVICE.type
        place = torch.device("cpu") if there else wanted[0]
        args, kwargs = tree_map_only(torch.device, lambda _: place, (args, kwargs))
    inner = tree_map_only(There, lambda x: x.inner, (args, kwargs))
    out = func(*inner[0], **inner[1])
    if func._schema.is_mutable:
        # What was written to is returned as it is.
        changed = {id(x.inner): x for x in given if isinstance(x, There)} | {id(x): x for x in given}
        return tree_map_only(Tensor, lambda x: changed.get(id(x), There(x) if there else x), out)
    if given and there != before:
        out = tree_map_only(Tensor, Tensor.clone, out)  # devices share no memory
    if there and not float64 and any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in tree_leaves(out)):
        raise TypeError("the pretended device has no float64")
    return tree_map_only(Tensor, There, out) if there else out


def _check_places(func: Any, args: Any, given: list[Tensor]) -> None:
    """Refuse tensors of two devices, with the exceptions that PyTorch makes."""
    name = func._schema.name
    if name in _INDEXES:
        given = [args[0], *args[2:3]]
    # A number of the CPU may meet any tensor, value by value.
    here = [x for x in given if not isinstance(x, There) and not (x.ndim == 0 and torch.Tag.pointwise in func.tags)]
    if here and name not in _MOVES:
        raise RuntimeError(f"{name} meets tensors of the pretended device and of the CPU")


@cache
def _registered() -> None:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend()
    # For whoever asks later, such as DataParallel, it is not there.
    torch.privateuseone.is_available = lambda: False  # type: ignore[attr-defined]


@contextmanager
def accelerator(float64: bool = True) -> Iterator[torch.device]:
    """Inside, this machine has the pretended device, and no other."""
    _registered()
    kind = torch.device(DEVICE.type)
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) then goes through the mode
    try:
        with (
            patch("torch.accelerator.current_accelerator", lambda check_available=False: kind),
            patch("torch.accelerator.device_count", lambda: 1),
            patch("torch.accelerator.current_device_index", lambda: 0),
            patch("torch.accelerator.synchronize", lambda device=None: None),
            _Pretending(float64),
        ):
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
