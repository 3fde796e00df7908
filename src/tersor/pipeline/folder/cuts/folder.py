"""The folder that a step `prune` leaves: tensors of the journal where blocks are done, narrowed ones before."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from safetensors import safe_open
from torch import Tensor

from tersor.checkpoints.hf_folder import Entry, HfFolder
from tersor.errors import CheckpointError, RecipeError
from tersor.pipeline.folder.cuts.plan import CutPlan, without_layers
from tersor.pipeline.folder.journal import Journal
from tersor.pipeline.folder.metamodel import MetaModel, TensorSlice


@dataclass(frozen=True)
class _Origin:
    """The tensor of the source that a tensor comes from, and the block of the smaller model that it belongs to."""

    name: str
    block: int | None


class PrunedFolder(HfFolder):
    """A smaller model, read as if its folder existed; configuration and tokenizer are those of the source.

    Before a block is done, its tensors are the first rows and columns of the source's, of the right shape.
    """

    def __init__(
        self, metamodel: MetaModel, plan: CutPlan, journal: Journal | None = None, kept: Sequence[int] | None = None
    ) -> None:
        """Derive every tensor's shape.

        Args:
            metamodel: the model that is pruned.
            journal: the finished blocks.
            kept: the layers that stay; by default the first ones.
        """
        self.source, self.journal = metamodel.folder, journal
        self.path, self.config, self.kept = self.source.path, plan.config, list(kept or range(plan.layers))
        if plan.kind == "layers" and kept is not None:
            self.config = without_layers(plan.part, len(metamodel.blocks), kept)
        self.entries: dict[str, Entry] = {}
        self._origins: dict[str, _Origin] = {}
        sites: dict[str, dict[int, tuple[int, int]]] = {}
        for axis in plan.axes:
            for (name, dim), sizes in axis.sites.items():
                sites.setdefault(name, {})[dim] = sizes
        numbers = {old: new for new, old in enumerate(self.kept)}
        for name, entry in self.source.entries.items():
            place = metamodel.slices.get(name)
            old = None if place is None else _block_of(metamodel, place)
            shape = entry.shape if place is None else _shape(place, entry.shape, sites.get(place.parameter, {}))
            if shape is None or (old is not None and old not in numbers):
                continue
            new = None if old is None else numbers[old]
            to = name if old is None or new is None or old == new else _renumbered(metamodel, name, old, new)
            self.entries[to] = Entry(entry.file, shape, entry.dtype)
            self._origins[to] = _Origin(name, new)

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """As in any folder."""
        for name in names:
            if name not in self._origins:
                raise CheckpointError(f"the pruned model of {self.path} has no tensor {name!r}")
            origin = self._origins[name]
            if self.journal is not None and origin.block is not None and self.journal.done(origin.block):
                with safe_open(str(self.journal.shard(origin.block)), framework="pt") as shard:
                    yield name, shard.get_tensor(name).clone()
                continue
            value = self.source.tensor(origin.name)
            for dim, size in enumerate(self.entries[name].shape):
                value = value.narrow(dim, 0, size)
            yield name, value.contiguous()


def _block_of(metamodel: MetaModel, place: TensorSlice) -> int | None:
    path = f"{metamodel.blocks.path}."
    if not place.parameter.startswith(path):
        return None
    return int(place.parameter.removeprefix(path).partition(".")[0])


def _shape(place: TensorSlice, shape: tuple[int, ...], sites: Mapping[int, tuple[int, int]]) -> tuple[int, ...] | None:
    """The shape of a tensor whose parameter loses something; None if it is that of an expert that goes."""
    found = list(shape)
    for dim, (before, after) in sites.items():
        if place.index is None:
            found[dim] = after
        elif dim == 0:
            if place.index >= after:
                return None
        else:
            found[dim - 1] = found[dim - 1] * after // before
    return tuple(found)


def _renumbered(metamodel: MetaModel, name: str, old: int, new: int) -> str:
    """The name of a tensor in another block."""
    last = metamodel.blocks.path.rpartition(".")[2]
    found, count = re.subn(rf"((?:^|\.){re.escape(last)}\.){old}(?=\.)", rf"\g<1>{new}", name, count=1)
    if not count:
        raise RecipeError(f"{name} does not state its block {old} as {last}.{old}, so layers cannot be renumbered")
    return found

