"""Which products read a weight, and with what input, independent of the module's class."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tersor.errors import CalibrationError

See = Callable[[str, int | None, bool, Tensor], None]
"""Called for each product: the weight's name, the expert, whether it is stored [in, out], and the input."""

_CONVOLUTIONS: set[Any] = {F.conv1d, F.conv2d, F.conv3d}
_AS_LINEAR = {F.linear, *_CONVOLUTIONS}
# The position of each product's left operand, and the names of both operands.
_OPERANDS: dict[Any, tuple[int, str, str]] = {
    **dict.fromkeys(_AS_LINEAR, (0, "input", "weight")),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), (0, "input", "other")),
    **dict.fromkeys((torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm), (0, "input", "mat2")),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm), (1, "mat1", "mat2")),
    **dict.fromkeys((torch.baddbmm, torch.Tensor.baddbmm), (1, "batch1", "batch2")),
}


Added = Callable[[str, Tensor, Tensor], None]
"""Called for each sum with a product: the weight's name, the product, and the tensor it is added to."""

_SUMS: set[Any] = {
    torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__radd__, torch.Tensor.__iadd__,
}  # fmt: skip


@contextmanager
def watching(
    module: nn.Module, weights: Mapping[str, nn.Parameter], see: See, added: Added | None = None
) -> Iterator[None]:
    """Call ``see(name, index, transposed, input)`` before every product that reads one of ``weights``.

    ``name`` is the weight's name, the first one for tied weights. ``index`` is the expert for a weight of all experts
    ``[experts, rows, columns]``, read one by one or all at once, otherwise None. ``transposed`` means that the weight
    is stored ``[in, out]``, as in GPT-2's Conv1D. ``input`` is the tensor itself, ``[..., in]`` or a convolution's
    ``[batch, in, *spatial]``, so that layers that share an input can be recognized by its identity; use it at once, it
    may be overwritten later.

    Reads are recognized by the operand's memory, not by module class, in linear layers, matrix products and
    convolutions. Not covered are functions that PyTorch computes in one call (``nn.MultiheadAttention``, recurrent
    layers) and products with a converted copy of a weight; ``see`` is never called for such a weight.

    Args:
        module: the module whose forward will be called.
        weights: parameters of ``module`` with two or more dimensions, under names that the caller chooses.
        added: ``added(name, product, x)`` is called before the product of a matrix is added to ``x`` of the same shape,
            such as the residual stream.

    Raises:
        CalibrationError: a weight is not a parameter of the module, a product reads only a slice of a weight, or
            experts are read through a copy, whose products cannot be assigned to experts.

    >>> layer = nn.Linear(3, 2)
    >>> with watching(layer, {"fc": layer.weight}, lambda *read: print(*read[:3], tuple(read[3].shape))):
    ...     _ = layer(torch.zeros(5, 3))
    fc None False (5, 3)
    """
    parameters = {id(p) for p in module.parameters()}
    for name, weight in weights.items():
        if id(weight) not in parameters:
            raise CalibrationError(
                f"weight {name} is not a parameter of this {type(module).__name__}, which would never read it: "
                "pass the module's own parameters, taken after the last change to the module"
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
            self._report_sum(args)
        if func not in _OPERANDS:
            result = func(*args, **kwargs)
            self._check_copies((*args, *kwargs.values()), result)
            return result
        position, *names = _OPERANDS[func]
        left, right = (
            args[k] if k < len(args) else kwargs.get(n, kwargs.get("tensor2"))
            for k, n in enumerate(names, position)
        )
        if match := self._weight(right):
            name, weight, index, flipped = self._locate(right, *match, func)
            transposed = flipped if func in _AS_LINEAR else not flipped
            self._report(name, weight, index, transposed, left, every=right.ndim == 3 and func not in _AS_LINEAR)
        elif (match := self._weight(left)) and func not in _AS_LINEAR:
            name, weight, index, flipped = self._locate(left, *match, func)
            columns = right.mT if right.ndim > 1 else right
            self._report(name, weight, index, flipped, columns, every=left.ndim == 3)
        result = func(*args, **kwargs)
        if match and self.added is not None and match[1].ndim == 2 and isinstance(result, Tensor):
            self.products.append((match[0], result))
        return result

    def _report_sum(self, args: tuple[Any, ...]) -> None:
        terms = [a for a in args[:2] if isinstance(a, Tensor)]
        if len(terms) < 2 or terms[0].shape != terms[1].shape:
            return
        for name, product in self.products:
            for term, other in (terms, reversed(terms)):
                # The product itself, a view of it, or the output of a no-op dropout.
                if term.data_ptr() == product.data_ptr() and term.numel() == product.numel() and self.added is not None:
                    self.added(name, term, other)
                    return

    def _weight(self, x: Any) -> tuple[str, nn.Parameter] | None:
        """The watched weight in whose memory ``x`` starts, or None."""
        if isinstance(x, Tensor) and x.layout == torch.strided:
            for name, weight in self.stored.get(_memory(x), ()):
                if 0 <= x.storage_offset() - weight.storage_offset() < weight.numel():
                    return name, weight
        return None

    def _locate(
        self, x: Tensor, name: str, weight: nn.Parameter, func: Any
    ) -> tuple[str, nn.Parameter, int | None, bool]:
        """The expert that ``x`` is of the weight, and whether its last two dimensions are transposed."""
        offset, index, matrix = int(x.storage_offset() - weight.storage_offset()), None, weight
        if weight.ndim == 3 and x.ndim == 2:
            index, offset = divmod(offset, int(weight.stride(0)))
            matrix = weight[index]
        if offset == 0:
            for flipped in (False, True) if func not in _CONVOLUTIONS else (False,):
                as_stored = matrix.mT if flipped else matrix
                if x.shape == as_stored.shape and x.stride() == as_stored.stride():
                    return name, weight, index, flipped
        raise CalibrationError(
            f"weight {name}: a product reads a slice of shape {tuple(x.shape)} of its {tuple(weight.shape)}, and only "
            "whole matrices can be quantized: keep this weight in float"
        )

    def _report(
        self, name: str, weight: nn.Parameter, index: int | None, transposed: bool, x: Tensor, every: bool
    ) -> None:
        if not every:
            self.see(name, index, transposed, x)
            return
        for k in range(len(weight)):
            # One matrix of inputs per expert, or one shared by all.
            inputs = x.select(-3, k if x.shape[-3] > 1 else 0) if x.ndim > 2 else x
            self.see(name, k, transposed, inputs)

    def _check_copies(self, arguments: Iterable[Any], result: Any) -> None:
        if not isinstance(result, Tensor):
            return
        for x in arguments:
            match = self._weight(x)
            if match and match[1].ndim == 3 and _memory(result) != _memory(x):
                raise CalibrationError(
                    f"weight {match[0]}: its experts are read through a copy, so their inputs cannot be separated: set "
                    'config._experts_implementation = "eager" before calibrating, or keep this weight in float'
                )


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
