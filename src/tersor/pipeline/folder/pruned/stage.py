"""The step `prune` over a folder: the dense and the smaller model streamed together, block by block."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.checkpoints.foreign.files import read_json
from tersor.checkpoints.layouts import LAYOUTS
from tersor.errors import CalibrationError, SavedFolderError
from tersor.files import write_text
from tersor.measure.parts.folder_pruning import FolderPruning, Number
from tersor.measure.windows import Windows
from tersor.network.blocks.chain import empty, fill
from tersor.network.swap import weighted_modules
from tersor.pipeline.folder.activations import TokenBatches
from tersor.pipeline.folder.cuts.folder import PrunedFolder
from tersor.pipeline.folder.cuts.plan import CutPlan, plan_cut
from tersor.pipeline.folder.journal import Journal
from tersor.pipeline.folder.metamodel import MetaModel
from tersor.pipeline.folder.plan import FLOAT
from tersor.pipeline.folder.pruned.choose import repair_product
from tersor.pipeline.folder.pruned.observe import Both, Product, observe, order_of
from tersor.pipeline.folder.stream import Streaming
from tersor.pipeline.folder.write import tensors_of
from tersor.pipeline.progress import Stage
from tersor.recipe import Prune
from tersor.solvers.structured import REPAIRS, SCORES
from tersor.tables import made
from tersor.words import _, said

_DONE, ORIGINAL = "pruned.json", "original"
_DRAWN = 16
"""Tokens that are drawn to check blocks with, where no text is given."""


@dataclass(frozen=True)
class Texts:
    """The tokens that a stage reads.

    Args:
        calibration: for scores and repair; None: none are needed.
        mask: of the calibration, True for real tokens.
        evaluation: to be run through the dense model; None: it has been, or nothing is evaluated.
    """

    calibration: Windows | None
    mask: Tensor | None = None
    evaluation: Windows | None = None


class Pruner:
    """One step `prune`.

    Args:
        step: the options; seed: of what is drawn.
        metamodel: the model before it.
        journal: the finished blocks, in a folder of their own.
        texts: what is read.
    """

    def __init__(self, step: Prune, metamodel: MetaModel, journal: Journal, texts: Texts, seed: int) -> None:
        self.step, self.dense, self.journal, self.seed = step, metamodel, journal, seed
        self.plan: CutPlan = plan_cut(step, metamodel)
        self.score = made(SCORES, step.score, "score")
        self.repair = None if step.repair is None else made(REPAIRS, step.repair, "repair")
        self.texts = texts
        self.notes = dict[str, None]()
        layout = LAYOUTS["compressed-tensors"]
        self.old = Streaming(metamodel, FLOAT, seed, layout, [], journal)
        ids, mask = self._ids(), texts.mask if texts.calibration is not None else None
        place = metamodel.device
        mask = None if mask is None else mask.to(place)
        self.reference = TokenBatches("reference", ids.to(place), mask)
        self.calibration = TokenBatches("pruned", ids.to(place), mask)
        evaluation = texts.evaluation
        self.original = None if evaluation is None else TokenBatches(ORIGINAL, evaluation.ids.to(place))

    @property
    def streams(self) -> list[TokenBatches]:
        """What runs through the dense model."""
        return [self.reference, *([self.original] if self.original is not None else [])]

    def run(self, bar: Stage) -> tuple[MetaModel, FolderPruning]:
        """The smaller model, whose blocks the journal stores, and what happened."""
        done = self.journal.folder / _DONE
        if done.is_file():
            found = read_json(done, SavedFolderError, "discard the interrupted run with --force")
            self._prepare(found["kept"])
            return self.small, FolderPruning.model_validate(found["record"])
        self._prepare(self.chosen_layers(bar))
        start = self._begin()
        for number in range(start, len(self.kept)):
            bar.at(number)
            bar.say(_("block {number} of {count}", number=number + 1, count=len(self.kept)))
            self._block(number)
        record = self._record()
        # An interrupted run may have left others; of the original, what stands behind the last block is read later.
        count = len(self.dense.blocks)
        self._drop([(batches, k) for batches in (self.calibration, *self.streams) for k in range(count)])
        self._drop([(self.calibration, len(self.kept)), (self.reference, count)])
        write_text(done, json.dumps({"kept": self.kept, "record": record.model_dump(mode="json")}))
        return self.small, record

    # ------------------------------------------------ what kinds of cuts do
    def chosen_layers(self, bar: Stage) -> list[int]:
        """The layers that stay."""
        return list(range(self.plan.layers))

    def make_block(self, number: int, old: nn.Module, new: nn.Module) -> dict[str, Any]:
        """Fill the parameters of the smaller block; what is told of it."""
        raise NotImplementedError

    # ------------------------------------------------ the streams
    def _prepare(self, kept: list[int]) -> None:
        self.kept = kept
        folder = PrunedFolder(self.dense, self.plan, self.journal, kept)
        self.small = MetaModel(folder, device=self.dense.device)
        self.new = Streaming(self.small, FLOAT, self.seed, LAYOUTS["compressed-tensors"], [], self.journal)

    def _ids(self) -> Tensor:
        if self.texts.calibration is not None:
            return self.texts.calibration.ids
        embedding = self.dense.model.get_input_embeddings()  # type: ignore[operator]
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(0, embedding.weight.shape[0], (1, _DRAWN), generator=generator)

    def _begin(self) -> int:
        """Store the first block's inputs; the number of blocks that an earlier run finished."""
        count = 0
        while count < len(self.kept) and self.journal.done(count):
            count += 1
        self.old.begin(self.streams, count)
        self.new.begin([self.calibration], count)
        for number in range(count, -1, -1):
            if self._ready(number):
                return number
        return 0

    def _ready(self, number: int) -> bool:
        old = self._old(number)
        stored = [(self.calibration, number), *((t, old) for t in self.streams)]
        return all(t.activations is not None and t.activations.ready(k) for t, k in stored)

    def _old(self, number: int) -> int:
        """The dense block whose input is that of a block; behind the last one, the end."""
        if number == 0:
            return 0
        return self.kept[number] if number < len(self.kept) else len(self.dense.blocks)

    def _advance_dense(self, start: int, end: int) -> None:
        """Run the dense blocks from ``start`` on."""
        for number in range(start, end):
            name, block = self.dense.blocks.name(number), self.dense.blocks.modules[number]
            self.dense.load(self.dense.parameters(name), self.old.dtype)
            for batches in self.streams:
                self.old.advance(block, number, batches)
                if number > start:
                    self._drop([(batches, number)])
            empty(self.dense.model)

    def _block(self, number: int) -> None:
        """Make one block of the smaller model, write it, and compute the next one's inputs."""
        if number == 0 and self.kept[0] > 0:
            self._advance_dense(0, self.kept[0])
            self._drop([(t, 0) for t in self.streams])
        at, after = self.kept[number], self._old(number + 1)
        self._advance_dense(at, after)
        self.dense.load(self.dense.parameters(self.dense.blocks.name(at)), self.old.dtype)
        old, new = self.dense.blocks.modules[at], self.small.blocks.modules[number]
        record = self.make_block(number, old, new)
        self.new.advance(new, number, self.calibration)
        record["error"] = self._error(number + 1, after)
        layout = LAYOUTS["compressed-tensors"]
        names = self.small.parameters(self.small.blocks.name(number))
        self.journal.write(number, tensors_of(self.small, layout, names, {}), record)
        self._drop([(self.calibration, number), *((t, at) for t in self.streams)])
        empty(self.dense.model)
        empty(self.small.model)

    def _drop(self, stored: list[tuple[TokenBatches, int]]) -> None:
        """Delete inputs of blocks that are no longer read."""
        for batches, number in stored:
            assert batches.activations is not None
            batches.activations.drop(number)

    def both(self, number: int, after: int | None = None) -> Iterator[Both]:
        """The calibration text at a block of the smaller model, and at its dense counterpart."""
        reference, calibration, at = self.reference, self.calibration, self.kept[number]
        assert reference.activations is not None
        assert calibration.activations is not None
        then, now = reference.activations.read(at), calibration.activations.read(number)
        wanted = None if after is None else reference.activations.read(after)
        for k, (a, b, mask) in enumerate(zip(then, now, calibration.masks(), strict=True)):
            old, new = reference.arguments[k][at], calibration.arguments[k][number]
            yield Both(a, b, old, new, mask, None if wanted is None else next(wanted))

    def refit(
        self, number: int, old: nn.Module, new: nn.Module, products: Sequence[Product], after: int | None
    ) -> None:  # fmt: skip
        """Fit the block's products, in order, to what the dense ones give, those added to the stream to the dense sum.

        Args:
            products: which; what has lost inputs, and all others once the stream is not the dense one.
            after: the dense block whose input the block's output shall be.
        """
        assert self.repair is not None
        name = self.dense.blocks.name(self.kept[number])
        order = order_of(old, next(self.both(number)), [p.parameter for p in products])
        for group in order.groups:
            behind = after if group[-1].parameter in order.added[-1:] else None
            for product, seen in observe(old, new, group, self.both(number, behind), name).items():
                repair_product(product, new, seen.moments, self.repair)

    def products(self, number: int, old: nn.Module) -> list[Product]:
        """The matrices of the block's linear layers, as far as the folder stores them whole."""
        prefix = f"{self.dense.blocks.name(self.kept[number])}."
        whole = {s.parameter for s in self.dense.slices.values() if s.whole and s.index is None}
        names = {
            f"{m.name}.{key}".lstrip(".")
            for m in weighted_modules(old)
            for key in m.weights
            if m.op == "linear" and m.skip_reason is None
        }
        names = {n for n in names if f"{prefix}{n}" in whole and f"{prefix}{n}" not in self.dense.experts.routers}
        try:
            turned = order_of(old, next(self.both(number)), sorted(names)).turned
        except CalibrationError:  # a product reads part of a matrix, or a copy: nothing but what is cut is fitted
            return []
        return [Product(n, None, turned[n]) for n in sorted(names & turned.keys())]

    def copy_block(self, number: int, values: dict[str, Tensor]) -> None:
        """Set the parameters of a block of the smaller model, by their names in the block."""
        prefix = self.small.blocks.name(number)
        fill(self.small.model, {f"{prefix}.{name}": value.detach().clone() for name, value in values.items()})

    def _error(self, number: int, old: int) -> float:
        """The power of the difference to the dense hidden state, relative to that."""
        assert self.reference.activations is not None
        assert self.calibration.activations is not None
        lost = power = 0.0
        masks = self.calibration.masks()
        pairs = zip(self.reference.activations.read(old), self.calibration.activations.read(number), masks, strict=True)
        for wanted, found, mask in pairs:
            real = torch.ones(1, 1, 1) if mask is None else mask[:, :, None].cpu()
            wanted, found = wanted.cpu().float() * real, found.cpu().float() * real
            lost += float((found - wanted).square().sum(dtype=torch.float64))
            power += float(wanted.square().sum(dtype=torch.float64))
        return lost / power if power else 0.0

    def _record(self) -> FolderPruning:
        rows = [self.journal.record(k) for k in range(len(self.kept))]
        gone = sorted(set(range(len(self.dense.blocks))) - set(self.kept))
        numbers = [Number(key=a.key, before=a.before, after=a.after) for a in self.plan.axes]
        if gone:
            numbers.append(Number(key=said("layers"), before=len(self.dense.blocks), after=len(self.kept)))
        return FolderPruning(
            target=self.step.target,
            parameters_before=_parameters(self.dense.model),
            parameters_after=_parameters(self.small.model),
            numbers=tuple(numbers),
            gone=tuple(self.dense.blocks.name(k) for k in gone),
            errors=tuple(row["error"] for row in rows) if self.texts.calibration is not None else (),
            notes=tuple(dict.fromkeys(note for row in rows for note in row["notes"])),
        )


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def original_activations(folder: Path) -> Path | None:
    """The file of the evaluation text behind the dense model's last block, which the first stage left."""
    return next(iter(sorted(folder.glob(f"{ORIGINAL}-*.bin"))), None)
