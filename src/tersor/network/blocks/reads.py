"""Which products read a weight, and with what input: whatever the class of the module that holds it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tersor.errors import CalibrationError

See = Callable[[str, int | None, bool, Tensor], None]
"""Told of each product: the weight's name, which expert, whether it is stored [in, out], and the input."""

_CONVOLUTIONS: set[Any] = {F.conv1d, F.conv2d, F.conv3d}
_AS_LINEAR = {F.linear, *_CONVOLUTIONS}
# Where the left operand of each product stands, and what both are called.
_OPERANDS: dict[Any, tuple[int, str, str]] = {
    **dict.fromkeys(_AS_LINEAR, (0, "input", "weight")),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), (0, "input", "other")),
    **dict.fromkeys((torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm), (0, "input", "mat2")),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm), (1, "mat1", "mat2")),
    **dict.fromkeys((torch.baddbmm, torch.Tensor.baddbmm), (1, "batch1", "batch2")),
}


Added = Callable[[str, Tensor, Tensor], None]
"""Told of each sum with a product: the weight's name, the product, and what it is added to."""

_SUMS: set[Any] = {
    torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__radd__, torch.Tensor.__iadd__,
}  # fmt: skip


@contextmanager
def watching(
    module: nn.Module, weights: Mapping[str, nn.Parameter], see: See, added: Added | None = None
) -> Iterator[None]:
    """Call ``see(name, index, transposed, input)`` before every product that reads one of ``weights``.

    ``name`` is the weight's, the first where one parameter is given under several (tied weights). ``index`` is the
    expert's for a weight of all experts ``[experts, rows, columns]``, read one by one or all at once; else None.
    ``transposed`` says that the weight is stored ``[in, out]``, as GPT-2's Conv1D does. ``input`` is the tensor
    itself, ``[..., in]`` or a convolution's ``[pictures, in, *spatial]``, so that layers that share an input can be
    told by its identity; use it at once, it may be overwritten later.

    Reads are found by where the operand lies in memory, not by module classes: linear layers, matrix products and
    convolutions. Not seen: what PyTorch computes in one call (``nn.MultiheadAttention``, recurrent layers) and
    products with a converted copy of a weight; such a weight is never told of.

    Args:
        module: whose forward will be called.
        weights: parameters of ``module`` of two dimensions or more, by names of the caller's choice.
        added: ``added(name, product, x)`` is called before a product with a matrix is added to ``x`` of the same
            shape, as to the residual stream.

    Raises:
        CalibrationError: for a weight that is no parameter of the module; for a product with a piece of a weight;
            for experts read through a copy, whose products cannot be told from those of idle experts.

    >>> layer = nn.Linear(3, 2)
    >>> with watching(layer, {"fc": layer.weight}, lambda *read: print(*read[:3], tuple(read[3].shape))):
    ...     _ = layer(torch.zeros(5, 3))
    fc None False (5, 3)
    """
    own = {id(p) for p in module.parameters()}
    for name, weight in weights.items():
        if id(weight) not in own:
            raise CalibrationError(
                f"weight {name}: it is no parameter of this {type(module).__name__}, which would never read it; "
                "give the module's own parameters, taken after the last change to the module"
            )
    with _Reads(weights, see, added):
        yield


class _Reads(TorchFunctionMode):
    def __init__(self, weights: Mapping[str, nn.Parameter], see: See, added: Added | None):
        super().__init__()
        self.see, self.added = see, added
        self.products: list[tuple[str, Tensor]] = []
        self.stored: dict[int, list[tuple[str, nn.Parameter]]] = {}
        known = set[int]()
        for name, weight in weights.items():
            if id(weight) not in known:
                known.add(id(weight))
                self.stored.setdefault(_memory(weight), []).append((name, weight))

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.added is not None and func in _SUMS:
            self._tell_sum(args)
        if func not in _OPERANDS:
            result = func(*args, **kwargs)
            self._refuse_copies((*args, *kwargs.values()), result)
            return result
        position, *names = _OPERANDS[func]
        left, right = (
            args[k] if k < len(args) else kwargs.get(n, kwargs.get("tensor2"))
            for k, n in enumerate(names, position)
        )
        if found := self._weight(right):
            name, weight, index, flipped = self._placed(right, *found, func)
            transposed = flipped if func in _AS_LINEAR else not flipped
            self._tell(name, weight, index, transposed, left, every=right.ndim == 3 and func not in _AS_LINEAR)
        elif (found := self._weight(left)) and func not in _AS_LINEAR:
            name, weight, index, flipped = self._placed(left, *found, func)
            columns = right.mT if right.ndim > 1 else right
            self._tell(name, weight, index, flipped, columns, every=left.ndim == 3)
        result = func(*args, **kwargs)
        if found and self.added is not None and found[1].ndim == 2 and isinstance(result, Tensor):
            self.products.append((found[0], result))
        return result

    def _tell_sum(self, args: tuple[Any, ...]) -> None:
        terms = [a for a in args[:2] if isinstance(a, Tensor)]
        if len(terms) < 2 or terms[0].shape != terms[1].shape:
            return
        for name, product in self.products:
            for own, other in (terms, reversed(terms)):
                # A view, or what a dropout that does nothing hands on.
                if own.data_ptr() == product.data_ptr() and own.numel() == product.numel() and self.added is not None:
                    self.added(name, own, other)
                    return

    def _weight(self, x: Any) -> tuple[str, nn.Parameter] | None:
        """The watched weight in whose memory ``x`` begins."""
        if isinstance(x, Tensor) and x.layout == torch.strided:
            for name, weight in self.stored.get(_memory(x), ()):
                if 0 <= x.storage_offset() - weight.storage_offset() < weight.numel():
                    return name, weight
        return None

    def _placed(
        self, x: Tensor, name: str, weight: nn.Parameter, func: Any
    ) -> tuple[str, nn.Parameter, int | None, bool]:
        """Which slice of the weight ``x`` is, and whether its last two dimensions are exchanged."""
        offset, index, part = int(x.storage_offset() - weight.storage_offset()), None, weight
        if weight.ndim == 3 and x.ndim == 2:
            index, offset = divmod(offset, int(weight.stride(0)))
            part = weight[index]
        if offset == 0:
            for flipped in (False, True) if func not in _CONVOLUTIONS else (False,):
                as_stored = part.mT if flipped else part
                if x.shape == as_stored.shape and x.stride() == as_stored.stride():
                    return name, weight, index, flipped
        raise CalibrationError(
            f"weight {name}: a product reads a piece of shape {tuple(x.shape)} of its {tuple(weight.shape)}, and only "
            "whole matrices can be solved; keep this weight in float"
        )

    def _tell(
        self, name: str, weight: nn.Parameter, index: int | None, transposed: bool, x: Tensor, every: bool
    ) -> None:
        if not every:
            self.see(name, index, transposed, x)
            return
        for k in range(len(weight)):
            # One matrix of inputs for each expert, or one for them all.
            own = x.select(-3, k if x.shape[-3] > 1 else 0) if x.ndim > 2 else x
            self.see(name, k, transposed, own)

    def _refuse_copies(self, arguments: Iterable[Any], result: Any) -> None:
        if not isinstance(result, Tensor):
            return
        for x in arguments:
            found = self._weight(x)
            if found and found[1].ndim == 3 and _memory(result) != _memory(x):
                raise CalibrationError(
                    f"weight {found[0]}: its experts are read through a copy, so their inputs cannot be told; set "
                    'config._experts_implementation = "eager" before calibrating, or keep this weight in float'
                )


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
