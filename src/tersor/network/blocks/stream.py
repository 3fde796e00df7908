"""The residual stream of a block: which products read it, through which norm, and which write to it."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from tersor.errors import RewriteError
from tersor.network.blocks.operators import SHAPES, Call, Product, View, tensors

# Operators that move rows and keep the last dimension intact if its size stays the same.
_MOVES = set("view _unsafe_view expand select slice unsqueeze squeeze index index_select split repeat unbind".split())
_SAME = {"alias", "detach", "clone", "_to_copy"}
_SUMS = {"add", "sub", "index_add"}
_ZEROS = {"zeros", "zeros_like", "new_zeros"}


@dataclass(frozen=True)
class Rotated:
    """A value whose last dimension rotates with the stream; ``norm``: the weight it was multiplied by, or None."""

    norm: View | None = None


@dataclass(frozen=True)
class Written:
    """A sum of outputs of these weights and biases, which may be added to the stream; empty means zero."""

    by: frozenset[str] = frozenset()


class _Square:
    """The squares of a rotated value: only their sum over the last dimension is invariant."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A weight that reads the stream: its input dimension, and the weight of the norm before it, or None."""

    axis: int
    norm: View | None


class Stream:
    """The readers and writers of the stream in one call; ``see`` is the visitor for ``watch``.

    Attributes:
        readers: the weights that read the stream, by name.
        writers: the output dimension of each weight and bias that produces a value, by name.
    """

    def __init__(self, start: Tensor) -> None:
        self.size = start.shape[-1]
        self.of = WeakTensorKeyDictionary()
        self.of[start] = Rotated()
        self.readers: dict[str, Reader] = {}
        self.writers: dict[str, int] = {}
        self.added: set[str] = set()
        self.read_by: dict[str, str] = {}

    def see(self, call: Call) -> None:
        """Propagate the stream through one operator; raises RewriteError if it cannot be rotated there."""
        name = call.name.rstrip("_")
        if products := call.products():
            self._products(call, products)
            return
        if name in _ZEROS:
            self.of[call.result] = Written()
            return
        if name in SHAPES:
            return
        if call.function._schema.is_mutable:
            self._overwritten(call, kept=call.args[0] if name in _SUMS else None)
        states = [self.of.get(t) for t in call.tensors]
        if any(s is not None for s in states):
            state = self._propagate(call, name, states)
            for value in tensors(call.result):
                if state is None:
                    self.of.pop(value, None)
                elif value.shape[-1:] == (self.size,):
                    self.of[value] = state

    def finish(self, output: Any) -> None:
        """Check that the block's first output is the stream; raises RewriteError if not."""
        out = tensors(output)
        if not out or self.of.get(out[0]) != Rotated():
            raise RewriteError(
                "the block's output is not the sum of its input and outputs of linear layers: not rotated"
            )
        for value in out[1:]:
            self._require_unrotated(value, "the block's output")
        for name in sorted(self.added & self.read_by.keys()):
            raise RewriteError(
                f"{name} writes to the residual stream, and {self.read_by[name]} reads its output: not rotated"
            )

    def _overwritten(self, call: Call, kept: Tensor | None) -> None:
        """Forget the values that an in-place operator overwrote, other than ``kept``."""
        changed = {t.untyped_storage().data_ptr() for t in tensors(call.result)}
        for value in [v for v in self.of if v is not kept and v.untyped_storage().data_ptr() in changed]:
            self._require_unrotated(value, call.name)
            self.of.pop(value)

    def _products(self, call: Call, products: list[Product]) -> None:
        state = self.of.get(products[0].x)
        names = set()
        for product in products:
            weight, (read, out) = product.weight, (axis[0] for axis in product.weight.axes)
            known = self.readers.get(weight.name)
            if isinstance(state, Rotated):
                if known is not None and (known.axis, _name(known.norm)) != (read, _name(state.norm)):
                    raise RewriteError(f"{weight.name} reads the residual stream in two ways: not rotated")
                self.readers[weight.name] = Reader(read, state.norm)
            else:
                self._require_unrotated(product.x, weight.name)
            names.add(weight.name)
            self.writers[weight.name] = out
            bias = None if product.bias is None else call.views(product.bias)
            if bias is not None:
                names.add(bias.name)
                self.writers[bias.name] = bias.axes[0][0]
        if call.result.shape[-1] == self.size:
            self.of[call.result] = Written(frozenset(names))

    def _require_unrotated(self, value: Tensor, where: str) -> None:
        """A reader needs the value unrotated: it must not be the stream, and its writers must not write to the
        stream."""
        state = self.of.get(value)
        if isinstance(state, Rotated | _Square):
            raise RewriteError(_refusal(where, state))
        if isinstance(state, Written):
            self.read_by |= dict.fromkeys(state.by, where)

    def _propagate(self, call: Call, name: str, states: list[Any]) -> Any:
        first, state, rest = call.tensors[0], states[0], call.tensors[1:]
        kept = call.result.shape[-1:] == first.shape[-1:] if isinstance(call.result, Tensor) else True
        if name in _SAME and not rest:
            return state
        if name in _MOVES and kept and isinstance(state, Rotated | Written) and not _picks(call, first):
            return state
        if name in ("transpose", "permute") and _keeps_last(call, first.ndim):
            return state
        if name == "pow" and isinstance(state, Rotated) and call.args[1] == 2:
            return _Square()
        if name in ("mean", "sum") and len(call.args) > 1 and not rest:
            over_last = [d % first.ndim for d in call.args[1]] == [first.ndim - 1]
            if isinstance(state, _Square) and over_last:
                return None
            if isinstance(state, Written) and first.ndim - 1 not in [d % first.ndim for d in call.args[1]]:
                return state
        if name in ("mul", "div") and (product := self._multiply(call, name, states)) is not None:
            return product
        if name in _SUMS and (total := self._add(call, states)) is not None:
            return total
        if name == "_fused_rms_norm" and isinstance(state, Rotated) and state.norm is None:
            return Rotated(call.view(2))
        if name in ("add", "sub") and any(s == Rotated() for s in states):
            raise RewriteError(
                "a value added to the residual stream is not the output of linear layers alone (a norm after them?): "
                "it cannot be rotated"
            )
        for value in call.tensors:
            self._require_unrotated(value, call.name)
        return None

    def _multiply(self, call: Call, name: str, states: list[Any]) -> Any:
        if len(call.tensors) == 1:
            return None if isinstance(states[0], _Square) or call.args[0] is not call.tensors[0] else states[0]
        (a, b), (of_a, of_b) = call.tensors, states
        if of_a is not None and of_a is of_b and a is b:
            return _Square() if isinstance(of_a, Rotated) and name == "mul" else None
        for x, of_x, y, of_y in ((a, of_a, b, of_b), (b, of_b, a, of_a))[: 1 if name == "div" else 2]:
            if not isinstance(of_x, Rotated | Written) or of_y is not None or x.shape != call.result.shape:
                continue
            if y.ndim == 0 or y.shape[-1] == 1:
                return of_x
            view = call.views(y)
            if isinstance(of_x, Rotated) and of_x.norm is None and view is not None and y.ndim == 1 and name == "mul":
                return Rotated(view)
        return None

    def _add(self, call: Call, states: list[Any]) -> Any:
        terms = [s for t, s in zip(call.tensors, states, strict=True) if t.is_floating_point()]
        if len(terms) != 2 or not all(isinstance(s, Rotated | Written) for s in terms):
            return None
        if any(isinstance(s, Rotated) and s.norm is not None for s in terms):
            return None
        by = frozenset().union(*(s.by for s in terms if isinstance(s, Written)))
        if not any(isinstance(s, Rotated) for s in terms):
            return Written(by)
        self.added |= by
        return Rotated()


def _name(view: View | None) -> str | None:
    return None if view is None else view.name


def _picks(call: Call, first: Tensor) -> bool:
    """Whether an operator selects columns of a value, not rows."""
    if call.name == "index":
        return len(call.args[1]) >= first.ndim
    if call.name in ("view", "_unsafe_view", "expand"):
        return False
    if call.name == "repeat":
        return call.args[1][-1] != 1
    place = 2 if call.name == "split" else 1
    dim = call.args[place] if len(call.args) > place else 0
    last = first.ndim if call.name == "unsqueeze" else first.ndim - 1
    return isinstance(dim, int) and dim % (last + 1) == last


def _keeps_last(call: Call, ndim: int) -> bool:
    if call.name == "transpose":
        return ndim - 1 not in [d % ndim for d in call.args[1:3]]
    return call.args[1][-1] % ndim == ndim - 1


def _refusal(where: str, state: Rotated | _Square) -> str:
    if where == "native_layer_norm":
        return (
            "a LayerNorm reads the residual stream; it subtracts the mean of the channels, which a rotation changes: "
            "only networks with RMSNorm can be rotated"
        )
    norm = state.norm.name if isinstance(state, Rotated) and state.norm is not None else None
    value = f"it after {norm}" if norm else "it"
    return f"the residual stream cannot be rotated: {where} reads {value} and is not a linear layer or RMSNorm"
