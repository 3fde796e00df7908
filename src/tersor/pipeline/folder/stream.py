"""Compress a folder in the Hugging Face layout block by block, with one block in memory."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tersor.checkpoints.layouts import Layout
from tersor.errors import CalibrationError, TaskError
from tersor.network.blocks.calls import Returned, call, calls, check_second, plain, probe, run_tail
from tersor.network.blocks.chain import empty, get_tensor
from tersor.numerics.hadamard import Rotation
from tersor.pipeline.folder.activations import BlockCalls, TokenBatches, shared
from tersor.pipeline.folder.blockwise import BatchRun, BlockWeights, SolvedWeight, corrects_upstream_error, solve_block
from tersor.pipeline.folder.journal import Journal
from tersor.pipeline.folder.metamodel import MetaModel
from tersor.pipeline.folder.plan import WeightPlan
from tersor.pipeline.folder.solving.rewriting import UNTIED, block_calls, ends, rotate_block, rotate_ends, scale_block
from tersor.pipeline.folder.write import tensors_of
from tersor.recipe import Quantize

Train = Callable[
    [BlockWeights, BlockWeights, list[SolvedWeight], BlockCalls], tuple[list[SolvedWeight], dict[str, Any] | None]
]
"""Trains a solved block, given its float original and its calls; the weights, and the journal's entry."""


class Streaming:
    """Solves the blocks of a model one after the other.

    Args:
        metamodel: the model, without weights.
        step: the options; seed: of everything random.
        plans: the plan of each weight.
        layout: the layout in which blocks are written, to ``journal``.
        train: trains each solved block; None: none is trained.
    """

    def __init__(
        self, metamodel: MetaModel, step: Quantize, seed: int, layout: Layout, plans: list[WeightPlan],
        journal: Journal, train: Train | None = None,
    ) -> None:  # fmt: skip
        self.metamodel, self.step, self.seed, self.layout = metamodel, step, seed, layout
        self.plans, self.journal, self.train = plans, journal, train
        self.stored = metamodel.folder.dtype
        # FP16, with 5 exponent bits, overflows in products on a CPU.
        self.dtype = torch.float32 if self.stored == torch.float16 else self.stored
        self.returned = Returned()
        self.rotation: Rotation | None = None
        self.untied: dict[str, Tensor] = {}
        self._float_head: dict[str, Tensor] = {}
        self.notes: list[str] = []
        # The calibration data run through the original model, for solvers that correct upstream error.
        self.reference: TokenBatches | None = None

    def begin(self, streams: list[TokenBatches], calibrated: int) -> None:
        """Record the first block's inputs and every block's other arguments; stored results are not recomputed."""
        calibration = next((t for t in streams if t.name == "calibration"), None)
        follows = self.train is not None or any(corrects_upstream_error(t) for t in self.plans)
        if calibration is not None and follows:
            self.reference = TokenBatches("followed", calibration.ids, calibration.token_mask, calibration.batch)
            streams.append(self.reference)
        metamodel, model, blocks = self.metamodel, self.metamodel.model, self.metamodel.blocks
        metamodel.load([*metamodel.outside(), *metamodel.parameters(blocks.name(0))], self.dtype)
        first = next(streams[0].inputs())
        hidden = self._probe(first)
        self._check_end(streams, _row(first), hidden)
        for batches in streams:
            activations = batches.store_in(self.journal.folder, hidden.shape[-1], self.dtype)
            if self.step.rotate:
                self.rotation = Rotation(hidden.shape[-1], self.seed)
            if calibrated == 0 and not activations.ready(0):
                activations.write(0, self._record(batches))
            else:
                for _ in self._record(batches):
                    pass
        empty(model)

    def _probe(self, first: Mapping[str, Tensor]) -> Tensor:
        """The first block's hidden states for one window; what else blocks return is recorded."""
        metamodel, blocks = self.metamodel, self.metamodel.blocks
        inputs = plain(metamodel.model, _row(first))
        try:
            hidden, self.returned = probe(metamodel.model, blocks, inputs)
            if self.returned.passed_on and len(blocks) > 1:
                metamodel.load(metamodel.parameters(blocks.name(1)), self.dtype)
                check_second(blocks, self.returned, calls(metamodel.model, blocks, inputs, self.returned, count=2))
        except (TypeError, ValueError, LookupError, RuntimeError, AttributeError, AssertionError) as error:
            raise CalibrationError(
                f"{type(metamodel.model).__name__} cannot be called with input_ids of shape "
                f"{list(first['input_ids'].shape)} block by block: {error}; do the tokenizer and the model match? If "
                "so, use a recipe without data, such as int8-weight"
            ) from error
        return hidden

    def _check_end(self, streams: list[TokenBatches], inputs: Mapping[str, Tensor], hidden: Tensor) -> None:
        """Check before any solving that the steps after the last block are possible."""
        model, blocks = self.metamodel.model, self.metamodel.blocks
        if self.step.rotate:
            ends(model, blocks, hidden.shape[-1])
        if any(t.name == "original" for t in streams):
            out = run_tail(model, blocks, plain(model, inputs), hidden, self.returned)
            logits = getattr(out, "logits", None)
            if logits is None or logits.shape[:-1] != inputs["input_ids"].shape:
                raise TaskError(
                    f"{type(model).__name__} does not return logits for each token, so no text can be scored: omit "
                    "`evaluate` (--valid)"
                )

    def _record(self, batches: TokenBatches) -> Iterator[Tensor]:
        """Yield the first block's inputs, in batches, and store the other arguments of all blocks."""
        model, blocks = self.metamodel.model, self.metamodel.blocks
        for inputs in batches.inputs():
            recorded = calls(model, blocks, plain(model, inputs), self.returned)
            rest = [(args[1:], kwargs) for args, kwargs in recorded]
            batches.arguments.append(shared(rest, batches.arguments[0]) if batches.arguments else rest)
            yield self._rotate(batches, recorded[0][0][0])

    def finished(self, streams: list[TokenBatches]) -> int:
        """The number of blocks that an earlier run finished."""
        count = 0
        while count < len(self.metamodel.blocks) and self.journal.done(count):
            count += 1
        for number in range(count, -1, -1):
            if all(t.activations is None or t.activations.ready(number) for t in streams):
                return number
        return 0

    def block(
        self,
        number: int,
        calibration: TokenBatches | None,
        original: TokenBatches | None,
        compressed: TokenBatches | None,
        on_weight: Callable[[SolvedWeight], None],
    ) -> list[SolvedWeight]:
        """Solve a block and write it; then compute the inputs of the next one."""
        metamodel = self.metamodel
        name = metamodel.blocks.name(number)
        block = metamodel.blocks.modules[number]
        names = metamodel.parameters(name)
        metamodel.load(names, self.dtype)
        if original is not None:
            self.advance(block, number, original)
        plans = [t for t in self.plans if not t.tail and t.touched and t.slice.parameter.startswith(name + ".")]
        if calibration is not None:
            self._rewrite(block, name, number, calibration, plans)
        tensors = {n: get_tensor(metamodel.model, n) for n in names}
        weights = BlockWeights(block, {n: p for n, p in tensors.items() if isinstance(p, torch.nn.Parameter)})
        original_weights = self._original_block(weights, name, number)
        run = partial(self.batch_runs, block, number, calibration, original_weights) if calibration else list
        solved = solve_block(weights, plans, run, self.step, self.seed, on_weight, original_weights)
        training = None
        if self.train and calibration and original_weights and self.reference:
            calls = BlockCalls(calibration, self.reference, number)
            solved, training = self.train(weights, original_weights, solved, calls)
        for batches in (calibration, compressed):
            if batches is not None:
                self.advance(block, number, batches)
        record = {"weights": [w.row() for w in solved], "training": training}
        self.journal.write(number, self._tensors(names, solved), record)
        for batches in (original, calibration, compressed, self.reference):
            if batches is not None and batches.activations is not None:
                batches.activations.drop(number)
        empty(metamodel.model)
        return solved

    def _rewrite(
        self, block: torch.nn.Module, name: str, number: int, batches: TokenBatches, plans: list[WeightPlan]
    ) -> None:  # fmt: skip
        assert batches.activations is not None
        calls = block_calls(partial(batches.activations.read, number), [b[number] for b in batches.arguments])
        if self.rotation is not None:
            rotate_block(block, self.rotation, calls)
        if self.step.awq:
            specs = {t.slice.parameter.removeprefix(name + "."): t.spec for t in plans if t.spec}
            scale_block(block, specs, calls)

    def _rotate(self, batches: TokenBatches, hidden: Tensor) -> Tensor:
        """Rotate the residual stream for the rewritten blocks, but not for the original ones."""
        return hidden if self.rotation is None or batches.name == "original" else self.rotation(hidden)

    def _original_block(self, weights: BlockWeights, name: str, number: int) -> BlockWeights | None:
        """A copy of the block with its original weights, which also computes the original activations."""
        if self.reference is None:
            return None
        module = copy.deepcopy(weights.module)
        self.advance(module, number, self.reference)
        return BlockWeights(module, {n: module.get_parameter(n.removeprefix(name + ".")) for n in weights.parameters})

    def batch_runs(
        self, block: torch.nn.Module, number: int, batches: TokenBatches, original_weights: BlockWeights | None = None
    ) -> Iterator[BatchRun]:  # fmt: skip
        """Each batch through a block's module, which is loaded."""
        assert batches.activations is not None
        inputs = zip(batches.activations.read(number), batches.arguments, batches.masks(), strict=True)
        originals = None
        if original_weights is not None and self.reference is not None and self.reference.activations is not None:
            originals = self.reference.activations.read(number)
        for hidden, arguments, mask in inputs:
            args, kwargs = arguments[number]
            original = None
            if originals is not None and original_weights is not None:
                original = partial(call, original_weights.module, next(originals), args, kwargs)
            yield BatchRun(partial(call, block, hidden, args, kwargs), mask, original)

    def advance(self, block: torch.nn.Module, number: int, batches: TokenBatches) -> None:
        """Compute the next block's inputs with this block's module, which is loaded."""
        assert batches.activations is not None
        batches.activations.write(number + 1, (step.compute() for step in self.batch_runs(block, number, batches)))

    def _tensors(self, parameters: list[str], solved: list[SolvedWeight]) -> dict[str, Tensor]:
        codes = {w.plan.slice.name: w.qtensor for w in solved if w.qtensor is not None}
        return tensors_of(self.metamodel, self.layout, parameters, codes)

    def tail(self, batches: TokenBatches) -> Callable[[Tensor], Tensor]:
        """A function ``ids → logits`` for the windows, to be called in their order."""
        done = 0

        def logits(ids: Tensor) -> Tensor:
            nonlocal done
            done += len(ids)
            return self.logits_at(batches, slice(done - len(ids), done))

        return logits

    def logits_at(self, batches: TokenBatches, rows: slice) -> Tensor:
        """The logits of some windows, from their values behind the last block."""
        metamodel, activations = self.metamodel, batches.activations
        assert activations is not None
        floating, found = batches.name in ("original", "followed"), []
        windows = batches.ids[list(range(rows.start, rows.stop))]
        for ids, hidden in zip(windows, activations.rows(len(metamodel.blocks), rows), strict=True):
            inputs, hidden = plain(metamodel.model, {"input_ids": ids[None]}), hidden[None]
            if self.rotation is not None and batches.name == "original":
                hidden = self.rotation(hidden)  # the head is already rotated
            with self._float_head_restored() if floating else nullcontext():
                found.append(run_tail(metamodel.model, metamodel.blocks, inputs, hidden, self.returned).logits)
        return torch.cat(found)

    @contextmanager
    def _float_head_restored(self) -> Iterator[None]:
        """Restore the float head inside."""
        parameters = {n: self.metamodel.model.get_parameter(n) for n in self._float_head}
        quantized = {n: p.data for n, p in parameters.items()}
        for n, p in parameters.items():
            p.data = self._float_head[n]
        try:
            yield
        finally:
            for n, p in parameters.items():
                p.data = quantized[n]

    def load_outside(self) -> None:
        """Load the embeddings, the final norm and the head."""
        self.metamodel.load(self.metamodel.outside(), self.dtype)
        if self.rotation is not None:
            self.untied = rotate_ends(self.metamodel.model, self.metamodel.blocks, self.rotation)
            if self.untied:
                self.notes = [UNTIED]

    def outside(self, solved: list[SolvedWeight]) -> dict[str, Tensor]:
        """The tensors that the folder stores besides the blocks."""
        tensors = self._tensors(self.metamodel.outside(), solved)
        untied = {name: head.to("cpu", self.stored).clone() for name, head in self.untied.items()}
        return tensors | untied | dict(self.metamodel.folder.tensors(self.metamodel.unused))

    def solve_head(self, batches: TokenBatches | None, on_weight: Callable[[SolvedWeight], None]) -> list[SolvedWeight]:
        """Quantize the weights after the blocks that a rule selects; call ``load_outside`` first."""
        metamodel = self.metamodel
        plans = [t for t in self.plans if t.tail and t.touched]
        if not plans:
            return []
        names = {t.slice.parameter for t in plans}
        parameters = {n: metamodel.model.get_parameter(n) for n in names}
        self._float_head = {n: p.detach().clone() for n, p in parameters.items()}

        def batch_runs() -> Iterator[BatchRun]:
            assert batches is not None and batches.activations is not None
            hiddens = batches.activations.read(len(metamodel.blocks))
            for hidden, inputs, mask in zip(hiddens, batches.inputs(), batches.masks(), strict=True):
                given = plain(metamodel.model, inputs)
                yield BatchRun(partial(run_tail, metamodel.model, metamodel.blocks, given, hidden, self.returned), mask)

        head = BlockWeights(metamodel.model, parameters)
        return solve_block(head, plans, batch_runs, self.step, self.seed, on_weight)


def _row(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[:1] for name, value in inputs.items()}
