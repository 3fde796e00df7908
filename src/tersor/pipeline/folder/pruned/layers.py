"""Whole layers that go: those that turn the hidden state least, and what the others learn in their place."""

import json
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from tersor.checkpoints.foreign.files import read_json
from tersor.errors import CheckpointError, RecipeError, SavedFolderError
from tersor.files import write_text
from tersor.network.blocks.calls import call
from tersor.network.blocks.chain import empty
from tersor.pipeline.folder.activations import TokenBatches
from tersor.pipeline.folder.pruned.observe import order_of
from tersor.pipeline.folder.pruned.stage import Pruner
from tersor.pipeline.progress import Stage
from tersor.words import _, said

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE = 0.05


class LayerPruner(Pruner):
    """Drops layers, and fits what is added to the stream in those around and behind the gaps."""

    def chosen_layers(self, bar: Stage) -> list[int]:
        """All but those with the least block influence (arXiv 2403.03853)."""
        count = len(self.dense.blocks)
        names = [self.dense.blocks.name(k) for k in range(count)]
        for pattern in self.step.keep:
            if not any(_fits(name, pattern) for name in names):
                raise RecipeError(f"`keep: {pattern}` matches none of the layers {names[0]} to {names[-1]}")
        free = [k for k in range(count) if not any(_fits(names[k], p) for p in self.step.keep)]
        gone = count - self.plan.layers
        if len(free) < gone:
            raise RecipeError(
                f"the target {self.step.target!r} takes {gone} layers, and `keep` leaves {len(free)} to choose from"
            )
        influence = self._influences(bar)
        lost = set(sorted(free, key=lambda k: (influence[k], k))[:gone])
        return [k for k in range(count) if k not in lost]

    def _influences(self, bar: Stage) -> list[float]:
        """One minus the mean cosine of each block's input and output, over real tokens."""
        path = self.journal.folder / "influence.json"
        found = read_json(path, SavedFolderError, "discard the interrupted run with --force") if path.is_file() else []
        count = len(self.dense.blocks)
        if len(found) == count:
            return found
        scored = TokenBatches("scored", self.reference.ids, self.reference.token_mask)
        self.old.begin([scored], len(found))
        assert scored.activations is not None
        if not scored.activations.ready(len(found)):
            found = []
            self.old.begin([scored := TokenBatches("scored", self.reference.ids, self.reference.token_mask)], 0)
        assert scored.activations is not None
        for number in range(len(found), count):
            bar.say(_("block {number} of {count}: influence", number=number + 1, count=count))
            self.dense.load(self.dense.parameters(self.dense.blocks.name(number)), self.old.dtype)
            self.old.advance(self.dense.blocks.modules[number], number, scored)
            total = rows = 0.0
            pairs = zip(
                scored.activations.read(number), scored.activations.read(number + 1), scored.masks(), strict=True
            )
            for before, after, mask in pairs:
                turned = (1 - torch.cosine_similarity(before.float(), after.float(), dim=-1)).cpu()
                turned = turned if mask is None else turned[mask.cpu()]
                total, rows = total + float(turned.sum(dtype=torch.float64)), rows + turned.numel()
            found = [*found, total / max(1.0, rows)]
            write_text(path, json.dumps(found))
            scored.activations.drop(number)
            empty(self.dense.model)
        scored.activations.drop(count)
        return found

    def make_block(self, number: int, old: nn.Module, new: nn.Module) -> dict[str, Any]:
        """Copy a block, and fit what it adds to the stream once anything in front of it or behind it is gone."""
        at, after = self.kept[number], self._old(number + 1)
        name = self.dense.blocks.name(at)
        first, values = next(self.both(number)), {n: p.detach() for n, p in old.named_parameters()}
        others = {n: tuple(p.shape) for n, p in new.named_parameters()}
        if others != {n: tuple(v.shape) for n, v in values.items()}:
            raise CheckpointError(
                f"{name} would become {self.small.blocks.name(number)}, which transformers builds in another way: keep "
                f"layers of both kinds with `keep`, or take another target"
            )
        self.copy_block(number, values)
        wanted = call(old, first.hidden, *first.old)
        lost = (call(new, first.hidden, *first.new) - wanted).norm() / (wanted - first.hidden).norm().clamp(min=1e-30)
        if lost > _TOLERANCE.get(self.old.dtype, _COARSE):
            raise CheckpointError(
                f"{name} would become {self.small.blocks.name(number)}, and computes something else there: its "
                "architecture depends on a layer's number; take another target"
            )
        if self.repair is None or (at == number and after == at + 1):
            return {"notes": []}
        products = self.products(number, old)
        order = order_of(old, first, [p.parameter for p in products])
        if at == number:  # nothing in front of it is gone, so only what is added behind it changes
            products = [p for p in products if p.parameter in order.added[-1:]]
        if not order.added:
            return {"notes": [said(
                "{name} is not repaired: none of its products is added to the residual stream as it is", name=name
            )]}
        self.refit(number, old, new, products, after)
        return {"notes": []}


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.rpartition(".")[2] == pattern
