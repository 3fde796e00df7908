"""The operators that one call of an eager block executes, and which weights its matrix products read.

The block runs on the recorded call and is not traced symbolically, so routing between experts, caches and other
Python control flow are real, and no layer class needs to be known. A weight is addressed by its name and the part of
it that a product reads, so ``nn.Linear``, GPT-2's ``Conv1D`` and experts in one 3-D parameter are handled alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

# Operators that read only the shape of their argument.
SHAPES = set("zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full".split())
_SAME = {"alias", "detach", "clone", "_to_copy"}
Index = Tensor | slice


@dataclass(frozen=True, eq=False)
class View:
    """A part of a parameter, with its dimensions in any order.

    Args:
        name: the parameter's name.
        shape: the parameter's shape.
        axes: for each dimension of the view, the parameter's dimension and the indices that the view covers.
        fixed: the index into each of the parameter's other dimensions, such as the expert.
        offset: an added constant (Gemma's norms multiply by 1 + weight).
    """

    name: str
    shape: torch.Size
    axes: tuple[tuple[int, Index], ...]
    fixed: Mapping[int, int] = field(default_factory=dict)
    offset: float = 0.0

    @classmethod
    def whole(cls, name: str, parameter: Tensor) -> "View":
        """The whole parameter."""
        return cls(name, parameter.shape, tuple((d, slice(None)) for d in range(parameter.ndim)))

    def at(self, table: Tensor, *axes: int) -> tuple[Any, ...]:
        """The index of the view's axes into a table of the parameter's shape, or of size 1 in some dimensions."""
        index: list[Any] = [0] * table.ndim
        for dim, k in self.fixed.items():
            index[dim] = k if table.shape[dim] > 1 else 0
        for axis in axes:
            dim, covered = self.axes[axis]
            index[dim] = covered
        return tuple(index)

    def select(self, axis: int, k: int) -> "View":
        """The view at one index of an axis, without that axis."""
        dim, covered = self.axes[axis]
        at = range(self.shape[dim])[covered] if isinstance(covered, slice) else covered.tolist()
        axes = tuple(a for i, a in enumerate(self.axes) if i != axis % len(self.axes))
        return replace(self, axes=axes, fixed={**self.fixed, dim: int(at[k])})


@dataclass(frozen=True, eq=False)
class Product:
    """``x[index] @ weight (+ bias)``: a linear layer or one of several experts.

    ``weight`` has inputs on axis 0 and outputs on axis 1; ``index`` selects rows of the operator's input and output.
    """

    x: Tensor
    index: Any
    weight: View
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Call:
    """One executed operator: its ATen name, arguments, result, and the weights among its arguments."""

    name: str
    function: Any
    args: Any
    kwargs: dict[str, Any]
    result: Any
    views: Callable[[Tensor], View | None]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return tensors((self.args, self.kwargs))

    def view(self, position: int) -> View | None:
        """The weight at an argument position, or None."""
        value = self.args[position] if len(self.args) > position else None
        return self.views(value) if isinstance(value, Tensor) else None

    def products(self) -> list[Product]:
        """The products with weights that the operator computes, or an empty list."""
        if self.name == "addmm" and not self.kwargs and (weight := self.view(2)) is not None:
            return [Product(self.args[1], slice(None), weight, self.args[0])]
        if self.name not in ("mm", "bmm", "_grouped_mm") or (weight := self.view(1)) is None or self.view(0):
            return []
        x = self.args[0]
        if self.name == "mm":
            return [Product(x, slice(None), weight)]
        if self.name == "bmm":
            return [Product(x, k, weight.select(0, k)) for k in range(len(x))]
        if len(self.args) < 3 or x.ndim != 2 or len(weight.axes) != 3:
            return []
        # Rows are sorted by expert; args[2] holds the end of each expert's rows.
        bounds = pairwise([0, *self.args[2].tolist()])
        return [Product(x, slice(a, b), weight.select(0, k)) for k, (a, b) in enumerate(bounds) if a < b]


def watch(block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], visit: Callable[[Call], None]) -> Any:
    """Run the block on one call and pass each operator, after it ran, to ``visit``. Returns the block's output.

    Operators that only move a weight are not visited: their result is a view of it.

    >>> block, operators = nn.Sequential(nn.Linear(2, 3), nn.ReLU()), []
    >>> _ = watch(block, (torch.ones(1, 2),), {}, lambda call: operators.append((call.name, len(call.products()))))
    >>> operators
    [('addmm', 1), ('relu', 0)]
    """
    with torch.no_grad(), _Watch(block, visit):
        return block(*args, **kwargs)


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings, such as a model's output, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []


class _Watch(TorchDispatchMode):
    def __init__(self, block: nn.Module, visit: Callable[[Call], None]) -> None:
        super().__init__()
        self.visit = visit
        self.views = WeakTensorKeyDictionary()
        for name, parameter in block.named_parameters():
            self.views[parameter] = View.whole(name, parameter)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # For inference-mode tensors, composite operators arrive undecomposed.
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        call = Call(name, func, tuple(args), kwargs or {}, result, self.views.get)
        view = call.view(0)
        moved = None if view is None else _view_after(view, call)
        if moved is not None:
            self.views[result] = moved
        else:
            self.visit(call)
        return result


def _view_after(view: View, call: Call) -> View | None:
    """The view that results from an operator that only moves values or adds a constant, or None for any other."""
    name, rest, axes = call.name, call.args[1:], view.axes
    if name in _SAME:
        return view
    if name == "t":
        return replace(view, axes=axes[::-1])
    if name == "transpose":
        order = list(range(len(axes)))
        a, b = (d % len(axes) for d in rest)
        order[a], order[b] = b, a
        return replace(view, axes=tuple(axes[d] for d in order))
    if name == "permute":
        return replace(view, axes=tuple(axes[d] for d in rest[0]))
    if name == "select":
        return view.select(rest[0], rest[1])
    if name == "index" and len(rest[0]) == 1 and rest[0][0].numel() == 1 and rest[0][0].ndim == 0:
        return view.select(0, int(rest[0][0]))
    if name == "slice":
        return _slice(view, call)
    if name == "add" and len(axes) == 1 and not isinstance(rest[0], Tensor) and not call.kwargs:
        return replace(view, offset=view.offset + rest[0])
    return None


def _slice(view: View, call: Call) -> View:
    defaults: list[Any] = [0, None, None, 1]
    dim, start, end, step = (*call.args[1:], *defaults[len(call.args) - 1 :])
    axes = list(view.axes)
    parameter_dim, covered = axes[dim]
    indices = torch.arange(view.shape[parameter_dim])[covered] if isinstance(covered, slice) else covered
    axes[dim] = parameter_dim, indices[start:end:step]
    return replace(view, axes=tuple(axes))
