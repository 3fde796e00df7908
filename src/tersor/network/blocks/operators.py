"""The operators that one call of an eager block really runs, and which weights its matrix products read.

Nothing is traced symbolically: the block runs on the recorded call, so that routing between experts, caches and
whatever else Python decides is as it is, and no class of layer needs to be known. A weight is addressed by its name
and by which part of it a product reads, so that ``nn.Linear``, GPT-2's ``Conv1D`` and experts in one 3-D parameter
are alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

# Operators that read the shape of their argument only.
SHAPES = set("zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full".split())
_SAME = {"alias", "detach", "clone", "_to_copy"}
Index = Tensor | slice


@dataclass(frozen=True, eq=False)
class View:
    """A part of a parameter, its dimensions in any order.

    Args:
        name: the parameter's.
        shape: the parameter's.
        axes: for each dimension of the view the parameter's dimension and which of its indices are seen.
        fixed: the index that each of the parameter's other dimensions stands at: which expert.
        offset: a constant that was added (Gemma's norms multiply by 1 + weight).
    """

    name: str
    shape: torch.Size
    axes: tuple[tuple[int, Index], ...]
    fixed: Mapping[int, int] = field(default_factory=dict)
    offset: float = 0.0

    @classmethod
    def whole(cls, name: str, parameter: Tensor) -> "View":
        """All of a parameter."""
        return cls(name, parameter.shape, tuple((d, slice(None)) for d in range(parameter.ndim)))

    def at(self, table: Tensor, *axes: int) -> tuple[Any, ...]:
        """Where a table, as large as the parameter or 1 wide in some dimensions, holds what the view's axes see."""
        index: list[Any] = [0] * table.ndim
        for dim, k in self.fixed.items():
            index[dim] = k if table.shape[dim] > 1 else 0
        for axis in axes:
            dim, seen = self.axes[axis]
            index[dim] = seen
        return tuple(index)

    def select(self, axis: int, k: int) -> "View":
        """The view at one index of an axis, which is gone."""
        dim, seen = self.axes[axis]
        at = range(self.shape[dim])[seen] if isinstance(seen, slice) else seen.tolist()
        axes = tuple(a for i, a in enumerate(self.axes) if i != axis % len(self.axes))
        return replace(self, axes=axes, fixed={**self.fixed, dim: int(at[k])})


@dataclass(frozen=True, eq=False)
class Product:
    """``x[index] @ weight (+ bias)``: a linear layer, or one expert of many.

    ``weight`` has the inputs on its axis 0 and the outputs on its axis 1; ``index`` says which rows of the operator's
    input and output are meant.
    """

    x: Tensor
    index: Any
    weight: View
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Call:
    """One operator as it ran: its ATen name, arguments and result, and the weights among its arguments."""

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
        """The weight that stands at a position, if one does."""
        value = self.args[position] if len(self.args) > position else None
        return self.views(value) if isinstance(value, Tensor) else None

    def products(self) -> list[Product]:
        """The products with weights that the operator computes; empty where it is none."""
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
        # Rows are sorted by expert; each one's end is given.
        bounds = pairwise([0, *self.args[2].tolist()])
        return [Product(x, slice(a, b), weight.select(0, k)) for k, (a, b) in enumerate(bounds) if a < b]


def watch(block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], visit: Callable[[Call], None]) -> Any:
    """Run the block on one call; ``visit`` sees each operator behind its run. Returns the block's output.

    What only moves a weight is not shown: it makes a view of it.

    >>> block, seen = nn.Sequential(nn.Linear(2, 3), nn.ReLU()), []
    >>> _ = watch(block, (torch.ones(1, 2),), {}, lambda call: seen.append((call.name, len(call.products()))))
    >>> seen
    [('addmm', 1), ('relu', 0)]
    """
    with torch.no_grad(), _Watch(block, visit):
        return block(*args, **kwargs)


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings (a model's output among them), in order."""
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
        # Of tensors made in inference mode, operators that consist of others come whole.
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        call = Call(name, func, tuple(args), kwargs or {}, result, self.views.get)
        view = call.view(0)
        moved = None if view is None else _moved(view, call)
        if moved is not None:
            self.views[result] = moved
        else:
            self.visit(call)
        return result


def _moved(view: View, call: Call) -> View | None:
    """The view behind an operator that only moves values, or adds a constant; None for any other."""
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
        return _sliced(view, call)
    if name == "add" and len(axes) == 1 and not isinstance(rest[0], Tensor) and not call.kwargs:
        return replace(view, offset=view.offset + rest[0])
    return None


def _sliced(view: View, call: Call) -> View:
    defaults: list[Any] = [0, None, None, 1]
    dim, start, end, step = (*call.args[1:], *defaults[len(call.args) - 1 :])
    axes = list(view.axes)
    of, seen = axes[dim]
    indices = torch.arange(view.shape[of])[seen] if isinstance(seen, slice) else seen
    axes[dim] = of, indices[start:end:step]
    return replace(view, axes=tuple(axes))
