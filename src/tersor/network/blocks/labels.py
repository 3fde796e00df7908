"""Label every value in a block, element by element, with the channel that can scale it.

A label is one channel of one weight. It starts where a product or a norm's weight produces the channel, propagates
with the values through operators that commute with a positive factor, and ends in the columns of the products that
read it. Other operators kill it. The rules apply to operators, not layers: repeated heads, fused projections and
experts need no rules of their own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from tersor.network.blocks.operators import SHAPES, Call, Product, View, tensors

NONE, UNSEEN = -1, -2
_MOVES = set(
    "view _unsafe_view t transpose permute expand select slice unsqueeze squeeze index index_select split "
    "split_with_sizes unbind repeat".split()
)
# f(s·x) = s·f(x) for s > 0, value by value.
_HOMOGENEOUS = {"alias", "detach", "clone", "_to_copy", "relu", "leaky_relu", "neg", "abs"}


class Labels:
    """The labels of one call; ``see`` is the visitor for ``watch``.

    Attributes:
        sources: for each weight or bias that produces labels, the labels of its elements, broadcast over the inputs.
        readers: for each weight that reads labelled values, the labels of its columns, broadcast over the outputs.
        owners: for each weight, the range of labels that are its channels.
        dead: for each label 0, or the index in ``reasons`` of why its channel cannot be scaled.
    """

    def __init__(self) -> None:
        self.of = WeakTensorKeyDictionary()
        self.sources: dict[str, Tensor] = {}
        self.readers: dict[str, Tensor] = {}
        self.owners: dict[str, tuple[int, int]] = {}
        self.offsets: dict[str, float] = {}
        self.untouchable: dict[str, str] = {}
        self.dead = torch.zeros(0, dtype=torch.int16)
        self.reasons: list[str] = ["no matrix product reads it"]

    def see(self, call: Call) -> None:
        """Propagate the labels through one operator."""
        result = self._propagate(call)
        out = tensors(call.result)
        if call.function._schema.is_mutable:
            # Aliases of the same memory keep their labels, so an in-place operator must not change them.
            for value in out:
                self._kill_differing(self.of.get(value), result, call.name)
        elif result is not None:
            for value, labels in zip(out, result if isinstance(result, list | tuple) else [result], strict=False):
                alive = (labels >= 0) & (self.dead[labels.long()] == 0)
                if alive.any():
                    self.of[value] = torch.where(alive, labels, NONE)

    def leave(self, output: Any) -> None:
        """Kill the labels of the block's output, which must not be scaled."""
        for value in tensors(output):
            self.kill(self.of.get(value), "it leaves the block")

    def kill(self, labels: Tensor | None, reason: str) -> None:
        """Mark labels as not scalable, with the reason."""
        if labels is None:
            return
        if reason not in self.reasons:
            self.reasons.append(reason)
        killed = labels[labels >= 0].long()
        self.dead[killed[self.dead[killed] == 0]] = self.reasons.index(reason)

    def _propagate(self, call: Call) -> Any:
        name = call.name.rstrip("_")
        if name in SHAPES:
            return None
        if products := call.products():
            return self._products(call, products)
        if (normed := self._norm(call, name)) is not None:
            return normed
        if all(self.of.get(t) is None and call.views(t) is None for t in call.tensors):
            return None
        first, existing = call.tensors[0], self.of.get(call.tensors[0])
        if name in _MOVES and existing is not None:
            return self._move(call, existing)
        if name in ("cat", "stack"):
            return call.function([self._full(t) for t in call.args[0]], *call.args[1:])
        if name in _HOMOGENEOUS and call.tensors == [first]:
            return existing
        if name in ("mul", "div"):
            return self._scale(call, name)
        if name in ("add", "sub") and len(call.tensors) == 2:
            a, b = torch.broadcast_tensors(*map(self._full, call.tensors))
            return self._kill_differing(a, b, "it is added to a value with another scale")
        if name == "bmm":
            return self._attend(call, call.args[1], call.result)
        if name.startswith("_scaled_dot_product"):
            return self._attend(call, call.args[2], call.result[0])
        self._stop(call, call.tensors)
        return None

    def _stop(self, call: Call, values: list[Tensor]) -> None:
        for value in values:
            self.kill(self.of.get(value), f"{call.name} does not commute with a scale")
            if (view := call.views(value)) is not None:
                self.untouchable[view.name] = f"{call.name} reads it, which is not a matrix product"

    def _full(self, value: Tensor) -> Tensor:
        existing = self.of.get(value)
        return torch.full((), NONE, dtype=torch.int32).expand(value.shape) if existing is None else existing

    def _kill_differing(self, a: Tensor | None, b: Any, reason: str) -> Tensor | None:
        """Keep the labels that are equal in both, kill the others."""
        if a is None or not isinstance(b, Tensor):
            for labels in (a, *tensors(b)):
                self.kill(labels, reason)
            return None
        same = a == b
        self.kill(a[~same], reason)
        self.kill(b[~same], reason)
        return torch.where(same, a, NONE)

    @staticmethod
    def _move(call: Call, labels: Tensor) -> Any:
        if call.name in ("view", "_unsafe_view"):
            return labels.reshape(call.result.shape)
        rest = tree_map_only(Tensor, Tensor.cpu, call.args[1:])
        return call.function(labels, *rest, **call.kwargs)

    def _scale(self, call: Call, name: str) -> Tensor | None:
        """A product keeps the labels of one factor only, a quotient those of the numerator."""
        a, b = (self.of.get(x) if isinstance(x, Tensor) else None for x in call.args[:2])
        for value in call.args[:2]:
            if isinstance(value, Tensor) and (view := call.views(value)) is not None:
                self.untouchable[view.name] = f"{call.name} reads it, which is not a matrix product"
        if name == "div" or (a is not None and b is not None):
            drop, keep = (b, a) if name == "div" else (a, b)
            self.kill(drop, "it is multiplied by a value with its own scale" if name == "mul" else "it is a divisor")
        else:
            keep = b if a is None else a
        return None if keep is None else keep.broadcast_to(call.result.shape)

    def _attend(self, call: Call, value: Tensor, result: Tensor) -> Tensor | None:
        """Attention mixes rows: a channel keeps its label if all rows have the same."""
        self._stop(call, [t for t in call.tensors if t is not value])
        labels = self.of.get(value)
        if labels is None:
            return None
        same = (labels == labels[..., :1, :]).all(-2, keepdim=True)
        self.kill(labels[~same.expand_as(labels)], "its rows have different scales")
        row = torch.where(same, labels[..., :1, :], NONE)
        if row.ndim == 4 and row.shape[1] != result.shape[1]:
            row = row.repeat_interleave(result.shape[1] // row.shape[1], 1)
        return row.expand(result.shape)

    def _norm(self, call: Call, name: str) -> Any:
        """A norm's weight labels an unlabelled value; a bias joins the labels of its value."""
        if name in ("native_layer_norm", "_fused_rms_norm") and (weight := call.view(2)) and len(weight.axes) == 1:
            self.kill(self.of.get(call.args[0]), f"{call.name} does not commute with a scale")
            bias = call.view(3) if name == "native_layer_norm" else None
            return [self._vector(weight, call.result[0], bias)]
        if name not in ("mul", "add") or len(call.tensors) != 2 or call.kwargs:
            return None
        for x, y in (call.tensors, call.tensors[::-1]):
            view, labels = call.views(y), self.of.get(x)
            if view is None or call.views(x) is not None or y.ndim != 1 or x.shape != call.result.shape:
                continue
            if name == "mul" and labels is None:
                return self._vector(view, x)
            if name == "add" and labels is not None:
                row = labels.flatten(0, -2)[0]
                self._join(view, row)
                return self._kill_differing(labels, row.expand_as(labels), "its rows have different scales")
        return None

    def _vector(self, weight: View, result: Tensor, bias: View | None = None) -> Tensor:
        labels = self._labels_of(weight, None)[weight.at(self.sources[weight.name], 0)]
        self.offsets[weight.name] = weight.offset
        if bias is not None:
            self._join(bias, labels)
        return labels.expand(result.shape)

    def _labels_of(self, weight: View, inputs: int | None) -> Tensor:
        """The labels of a weight's channels, one for each element along all dimensions but its inputs."""
        shape = [1 if d == inputs else n for d, n in enumerate(weight.shape)]
        existing = self.sources.get(weight.name)
        if existing is None or list(existing.shape) != shape:
            if existing is not None:
                self.untouchable[weight.name] = "it is read in two ways"
            first = len(self.dead)
            existing = torch.arange(first, first + torch.Size(shape).numel(), dtype=torch.int32).reshape(shape)
            self.dead = torch.cat([self.dead, self.dead.new_zeros(existing.numel())])
            self.sources[weight.name], self.owners[weight.name] = existing, (first, len(self.dead))
        return existing

    def _join(self, bias: View, labels: Tensor) -> None:
        table = self.sources.setdefault(bias.name, torch.full(bias.shape, UNSEEN, dtype=torch.int32))
        self._enter(table, bias.at(table, 0), labels)

    def _enter(self, table: Tensor, index: tuple[Any, ...], labels: Tensor) -> None:
        """Store labels in a table, and kill those that differ from labels stored there before."""
        old = table[index]
        old = torch.where(old == UNSEEN, labels, old)
        kept = self._kill_differing(old, labels.broadcast_to(old.shape), "a weight is used with two different scales")
        table[index] = kept if kept is not None else NONE

    def _products(self, call: Call, products: list[Product]) -> Tensor:
        result = torch.full(call.result.shape, NONE, dtype=torch.int32)
        for product in products:
            weight, rows = product.weight, self._full(product.x)[product.index]
            rows = rows.reshape(-1, rows.shape[-1])
            row = rows[0] if len(rows) else torch.full((rows.shape[1],), NONE, dtype=torch.int32)
            row = torch.where((rows == row).all(0), row, NONE)
            self._kill_differing(row.expand_as(rows), rows, "its rows have different scales")
            read, out = weight.axes[0][0], weight.axes[1][0]
            shape = [1 if d == out else n for d, n in enumerate(weight.shape)]
            table = self.readers.setdefault(weight.name, torch.full(shape, UNSEEN, dtype=torch.int32))
            if list(table.shape) == shape:
                self._enter(table, weight.at(table, 0), row)
            else:
                self.untouchable[weight.name] = "it is read in two ways"
            labels = self._labels_of(weight, read)
            labels = labels[weight.at(labels, 1)]
            bias = None if product.bias is None else call.views(product.bias)
            if bias is not None and len(bias.axes) == 1:
                self._join(bias, labels)
            elif product.bias is not None:
                self.kill(labels, "its bias is computed")
            result[product.index] = labels
        return result
