"""Who scales what in a block: every value labelled, element by element, with the channel that would scale it.

A label is one channel of one weight. It starts where a product or a norm's weight makes the channel, travels with the
values through whatever lets a positive factor pass, and ends in the columns of the products that read it. What lets
none pass kills it. The rules are of operators, not of layers: repeated heads, fused projections and experts need none
of their own.
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
    """What was found in one call; ``see`` is the visitor of ``watch``.

    Attributes:
        sources: for each weight or bias that makes labels, those of its elements, broadcast over the inputs.
        readers: for each weight that is read through labels, those of its columns, broadcast over the outputs.
        owners: the weight whose channels the labels from a first one on are.
        dead: for each label 0, or the number of the reason why nothing can scale it.
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
        """Follow the labels through one operator."""
        result = self._followed(call)
        out = tensors(call.result)
        if call.function._schema.is_mutable:
            # Other names of the same memory keep their labels: they may not change.
            for value in out:
                self._kill_differing(self.of.get(value), result, call.name)
        elif result is not None:
            for value, labels in zip(out, result if isinstance(result, list | tuple) else [result], strict=False):
                alive = (labels >= 0) & (self.dead[labels.long()] == 0)
                if alive.any():
                    self.of[value] = torch.where(alive, labels, NONE)

    def leave(self, output: Any) -> None:
        """Whoever reads the block's output expects it as it is."""
        for value in tensors(output):
            self.kill(self.of.get(value), "it leaves the block")

    def kill(self, labels: Tensor | None, reason: str) -> None:
        """Nothing may scale these."""
        if labels is None:
            return
        if reason not in self.reasons:
            self.reasons.append(reason)
        found = labels[labels >= 0].long()
        self.dead[found[self.dead[found] == 0]] = self.reasons.index(reason)

    def _followed(self, call: Call) -> Any:
        name = call.name.rstrip("_")
        if name in SHAPES:
            return None
        if products := call.products():
            return self._products(call, products)
        if (found := self._norm(call, name)) is not None:
            return found
        if all(self.of.get(t) is None and call.views(t) is None for t in call.tensors):
            return None
        first, known = call.tensors[0], self.of.get(call.tensors[0])
        if name in _MOVES and known is not None:
            return self._moved(call, known)
        if name in ("cat", "stack"):
            return call.function([self._full(t) for t in call.args[0]], *call.args[1:])
        if name in _HOMOGENEOUS and call.tensors == [first]:
            return known
        if name in ("mul", "div"):
            return self._scaled(call, name)
        if name in ("add", "sub") and len(call.tensors) == 2:
            a, b = torch.broadcast_tensors(*map(self._full, call.tensors))
            return self._kill_differing(a, b, "it is added to what has another scale")
        if name == "bmm":
            return self._attended(call, call.args[1], call.result)
        if name.startswith("_scaled_dot_product"):
            return self._attended(call, call.args[2], call.result[0])
        self._stop(call, call.tensors)
        return None

    def _stop(self, call: Call, values: list[Tensor]) -> None:
        for value in values:
            self.kill(self.of.get(value), f"{call.name} lets no scale through")
            if (view := call.views(value)) is not None:
                self.untouchable[view.name] = f"{call.name} reads it, which is no matrix product"

    def _full(self, value: Tensor) -> Tensor:
        known = self.of.get(value)
        return torch.full((), NONE, dtype=torch.int32).expand(value.shape) if known is None else known

    def _kill_differing(self, a: Tensor | None, b: Any, reason: str) -> Tensor | None:
        """The labels where both have the same; the others die."""
        if a is None or not isinstance(b, Tensor):
            for labels in (a, *tensors(b)):
                self.kill(labels, reason)
            return None
        same = a == b
        self.kill(a[~same], reason)
        self.kill(b[~same], reason)
        return torch.where(same, a, NONE)

    @staticmethod
    def _moved(call: Call, labels: Tensor) -> Any:
        if call.name in ("view", "_unsafe_view"):
            return labels.reshape(call.result.shape)
        rest = tree_map_only(Tensor, Tensor.cpu, call.args[1:])
        return call.function(labels, *rest, **call.kwargs)

    def _scaled(self, call: Call, name: str) -> Tensor | None:
        """A product keeps the labels of one factor only, a quotient those of the upper."""
        a, b = (self.of.get(x) if isinstance(x, Tensor) else None for x in call.args[:2])
        for value in call.args[:2]:
            if isinstance(value, Tensor) and (view := call.views(value)) is not None:
                self.untouchable[view.name] = f"{call.name} reads it, which is no matrix product"
        if name == "div" or (a is not None and b is not None):
            drop, keep = (b, a) if name == "div" else (a, b)
            self.kill(drop, "it is multiplied by what has a scale of its own" if name == "mul" else "it divides")
        else:
            keep = b if a is None else a
        return None if keep is None else keep.broadcast_to(call.result.shape)

    def _attended(self, call: Call, value: Tensor, result: Tensor) -> Tensor | None:
        """Rows mixed by what attention found: a channel's labels stay where all rows have the same."""
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
        """What a norm's weight and bias make: labels on a value without; a bias joins the labels of its value."""
        if name in ("native_layer_norm", "_fused_rms_norm") and (weight := call.view(2)) and len(weight.axes) == 1:
            self.kill(self.of.get(call.args[0]), f"{call.name} lets no scale through")
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
        labels = self._made(weight, None)[weight.at(self.sources[weight.name], 0)]
        self.offsets[weight.name] = weight.offset
        if bias is not None:
            self._join(bias, labels)
        return labels.expand(result.shape)

    def _made(self, weight: View, inputs: int | None) -> Tensor:
        """The labels that a weight makes, one for each element without the dimension of its inputs."""
        shape = [1 if d == inputs else n for d, n in enumerate(weight.shape)]
        known = self.sources.get(weight.name)
        if known is None or list(known.shape) != shape:
            if known is not None:
                self.untouchable[weight.name] = "it is read in two ways"
            first = len(self.dead)
            known = torch.arange(first, first + torch.Size(shape).numel(), dtype=torch.int32).reshape(shape)
            self.dead = torch.cat([self.dead, self.dead.new_zeros(known.numel())])
            self.sources[weight.name], self.owners[weight.name] = known, (first, len(self.dead))
        return known

    def _join(self, bias: View, labels: Tensor) -> None:
        table = self.sources.setdefault(bias.name, torch.full(bias.shape, UNSEEN, dtype=torch.int32))
        self._enter(table, bias.at(table, 0), labels)

    def _enter(self, table: Tensor, index: tuple[Any, ...], labels: Tensor) -> None:
        """Write labels down; what was written there before must be the same."""
        old = table[index]
        old = torch.where(old == UNSEEN, labels, old)
        kept = self._kill_differing(old, labels.broadcast_to(old.shape), "a weight is used with two different scales")
        table[index] = kept if kept is not None else NONE

    def _products(self, call: Call, products: list[Product]) -> Tensor:
        made = torch.full(call.result.shape, NONE, dtype=torch.int32)
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
            labels = self._made(weight, read)
            labels = labels[weight.at(labels, 1)]
            bias = None if product.bias is None else call.views(product.bias)
            if bias is not None and len(bias.axes) == 1:
                self._join(bias, labels)
            elif product.bias is not None:
                self.kill(labels, "its bias is computed")
            made[product.index] = labels
        return made
