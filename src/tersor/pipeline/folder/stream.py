"""A folder in the Hugging Face layout compressed block by block, with little of it in memory."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tersor.checkpoints.layouts import Layout
from tersor.errors import CalibrationError, TaskError
from tersor.network.blocks.chain import call, calls, empty, get_tensor, run_tail
from tersor.numerics.hadamard import Rotation
from tersor.pipeline.folder.activations import Activations
from tersor.pipeline.folder.blockwise import BatchRun, BlockWeights, SolvedWeight, corrects_upstream_error, solve_block
from tersor.pipeline.folder.journal import Journal
from tersor.pipeline.folder.metamodel import MetaModel
from tersor.pipeline.folder.plan import WeightPlan
from tersor.pipeline.folder.rewriting import block_calls, ends, rotate_block, rotate_ends, scale_block
from tersor.pipeline.folder.token_batches import TokenBatches, shared
from tersor.recipe import Recipe


class Streaming:
    """The blocks of a model, one after the other.

    Args:
        metamodel: the model without its weights.
        plans: one for each weight of the model.
        layout: of the written files; journal: where solved blocks are written.
    """

    def __init__(
        self, metamodel: MetaModel, recipe: Recipe, layout: Layout, plans: list[WeightPlan], journal: Journal
    ) -> None:
        self.metamodel, self.recipe, self.layout, self.plans, self.journal = metamodel, recipe, layout, plans, journal
        self.stored = metamodel.folder.dtype
        # Half precision of 5 exponent bits overflows in products on a CPU.
        self.dtype = torch.float32 if self.stored == torch.float16 else self.stored
        self.tupled = False
        self.rotation: Rotation | None = None
        self.untied: dict[str, Tensor] = {}
        self._float_head: dict[str, Tensor] = {}
        self.notes: list[str] = []
        # The calibration text as the original model sees it, where a solver wants to know.
        self.reference: TokenBatches | None = None

    def begin(self, texts: list[TokenBatches], calibrated: int) -> None:
        """Record what the first block reads, and the other arguments of each; nothing that is there is done again."""
        calibration = next((t for t in texts if t.name == "calibration"), None)
        if calibration is not None and any(corrects_upstream_error(t) for t in self.plans):
            self.reference = TokenBatches("followed", calibration.ids, calibration.token_mask)
            texts.append(self.reference)
        metamodel, model, blocks = self.metamodel, self.metamodel.model, self.metamodel.blocks
        metamodel.load(metamodel.outside(), self.dtype)
        metamodel.load(metamodel.parameters(blocks.name(0)), self.dtype)
        try:
            first = next(texts[0].inputs())
            ((hidden, *args), kwargs) = calls(model, blocks, _plain(model, _row(first)), count=1)[0]
            with torch.no_grad():
                self.tupled = isinstance(blocks.modules[0](hidden, *args, **kwargs), tuple)
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            raise CalibrationError(
                f"{type(model).__name__} cannot be called with input_ids of shape {list(first['input_ids'].shape)}: "
                f"{error}; do the tokenizer and the model belong together?"
            ) from error
        self._check_end(texts, _row(first), hidden)
        for text in texts:
            windows, length = text.ids.shape
            where = (self.journal.folder, text.name)
            text.activations = Activations(*where, windows, length, hidden.shape[-1], self.dtype, text.batch)
            if self.recipe.rotate:
                self.rotation = Rotation(hidden.shape[-1], self.recipe.seed)
            if calibrated == 0 and not text.activations.ready(0):
                text.activations.write(0, self._recorded(text))
            else:
                for _ in self._recorded(text):
                    pass
        empty(model)

    def _check_end(self, texts: list[TokenBatches], inputs: Mapping[str, Tensor], hidden: Tensor) -> None:
        """What is done behind the last block must be possible, or all blocks would be solved in vain."""
        model, blocks = self.metamodel.model, self.metamodel.blocks
        if self.recipe.rotate:
            ends(model, blocks, hidden.shape[-1])
        if any(t.name == "original" for t in texts):
            out = run_tail(model, blocks, _plain(model, inputs), hidden, self.tupled)
            logits = getattr(out, "logits", None)
            if logits is None or logits.shape[:-1] != inputs["input_ids"].shape:
                raise TaskError(
                    f"{type(model).__name__} gives no logits for each token, so that no text can be scored; leave "
                    "`evaluate` (--valid) out"
                )

    def _recorded(self, text: TokenBatches) -> Iterator[Tensor]:
        """What the first block reads, a batch at a time; the arguments of all blocks are kept."""
        model, blocks = self.metamodel.model, self.metamodel.blocks
        for inputs in text.inputs():
            found = calls(model, blocks, _plain(model, inputs), self.tupled)
            rest = [(args[1:], kwargs) for args, kwargs in found]
            text.arguments.append(shared(rest, text.arguments[0]) if text.arguments else rest)
            yield self._turned(text, found[0][0][0])

    def finished(self, texts: list[TokenBatches]) -> int:
        """How many blocks an earlier run has done."""
        count = 0
        while count < len(self.metamodel.blocks) and self.journal.done(count):
            count += 1
        for number in range(count, -1, -1):
            if all(t.activations is None or t.activations.ready(number) for t in texts):
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
        """Solve a block and write it; all texts are then in front of the next one."""
        metamodel = self.metamodel
        name = metamodel.blocks.name(number)
        block = metamodel.blocks.modules[number]
        own = metamodel.parameters(name)
        metamodel.load(own, self.dtype)
        if original is not None:
            self._advance(block, number, original)
        plans = [t for t in self.plans if not t.tail and t.touched and t.slice.parameter.startswith(name + ".")]
        if calibration is not None:
            self._rewrite(block, name, number, calibration, plans)
        tensors = {n: get_tensor(metamodel.model, n) for n in own}
        part = BlockWeights(block, {n: p for n, p in tensors.items() if isinstance(p, torch.nn.Parameter)})
        before = self._before(part, name, number)
        run = partial(self._steps, block, number, calibration, before) if calibration else list
        solved = solve_block(part, plans, run, self.recipe, on_weight, before)
        for text in (calibration, compressed):
            if text is not None:
                self._advance(block, number, text)
        self.journal.write(number, self._tensors(own, solved), [journal_row(w) for w in solved])
        for text in (original, calibration, compressed, self.reference):
            if text is not None and text.activations is not None:
                text.activations.drop(number)
        empty(metamodel.model)
        return solved

    def _rewrite(
        self, block: torch.nn.Module, name: str, number: int, text: TokenBatches, plans: list[WeightPlan]
    ) -> None:  # fmt: skip
        assert text.activations is not None
        arguments = [batch[number] for batch in text.arguments]
        calls = block_calls(partial(text.activations.read, number), arguments)
        if self.rotation is not None:
            rotate_block(block, self.rotation, calls)
        if self.recipe.awq:
            specs = {t.slice.parameter.removeprefix(name + "."): t.spec for t in plans if t.spec}
            scale_block(block, specs, calls)

    def _turned(self, text: TokenBatches, hidden: Tensor) -> Tensor:
        """The residual stream as the rewritten blocks read it; the original's stays as it is."""
        return hidden if self.rotation is None or text.name == "original" else self.rotation(hidden)

    def _before(self, part: BlockWeights, name: str, number: int) -> BlockWeights | None:
        """A copy of the block whose weights stay; what it makes of the original's activations is kept."""
        if self.reference is None:
            return None
        module = copy.deepcopy(part.module)
        self._advance(module, number, self.reference)
        return BlockWeights(module, {n: module.get_parameter(n.removeprefix(name + ".")) for n in part.parameters})

    def _steps(
        self, block: torch.nn.Module, number: int, text: TokenBatches, before: BlockWeights | None = None
    ) -> Iterator[BatchRun]:  # fmt: skip
        assert text.activations is not None
        batches = zip(text.activations.read(number), text.arguments, text.masks(), strict=True)
        originals = None
        if before is not None and self.reference is not None and self.reference.activations is not None:
            originals = self.reference.activations.read(number)
        for hidden, arguments, mask in batches:
            args, kwargs = arguments[number]
            original = None
            if originals is not None and before is not None:
                original = partial(call, before.module, next(originals), args, kwargs)
            yield BatchRun(partial(call, block, hidden, args, kwargs), mask, original)

    def _advance(self, block: torch.nn.Module, number: int, text: TokenBatches) -> None:
        assert text.activations is not None
        text.activations.write(number + 1, (step.compute() for step in self._steps(block, number, text)))

    def _tensors(self, parameters: list[str], solved: list[SolvedWeight]) -> dict[str, Tensor]:
        """What the folder will hold of these parameters."""
        codes = {w.plan.slice.name: w.qtensor for w in solved if w.qtensor is not None}
        found, inside = dict[str, Tensor](), set(parameters)
        for tensor_slice in self.metamodel.slices.values():
            if tensor_slice.parameter not in inside:
                continue
            if (qtensor := codes.get(tensor_slice.name)) is not None:
                found.update(self.layout.encode(tensor_slice.name, qtensor, self.stored))
            elif tensor_slice.whole:
                value = tensor_slice.part(get_tensor(self.metamodel.model, tensor_slice.parameter).detach())
                stored = self.metamodel.folder.tensor(tensor_slice.name)
                # Of another dtype than the model computes in, what did not change is not rounded.
                same = torch.equal(stored.to(value.dtype), value)
                found[tensor_slice.name] = stored if same else value.to(stored.dtype).clone()
            else:
                found[tensor_slice.name] = self.metamodel.folder.tensor(tensor_slice.name)
        return found

    def tail(self, text: TokenBatches) -> Callable[[Tensor], Tensor]:
        """``ids → logits`` for the windows of a text, to be asked for in their order."""
        metamodel, activations = self.metamodel, text.activations
        assert activations is not None
        hiddens = replace(activations, batch=1).read(len(metamodel.blocks))

        def logits(ids: Tensor) -> Tensor:
            found = []
            for row in ids:
                inputs, hidden = _plain(metamodel.model, {"input_ids": row[None]}), next(hiddens)
                if self.rotation is not None and text.name == "original":
                    hidden = self.rotation(hidden)  # as the head is by now
                with self._as_it_was() if text.name == "original" else nullcontext():
                    out = run_tail(metamodel.model, metamodel.blocks, inputs, hidden, self.tupled)
                found.append(out.logits)
            return torch.cat(found)

        return logits

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """The head in float while inside."""
        parameters = {n: self.metamodel.model.get_parameter(n) for n in self._float_head}
        now = {n: p.data for n, p in parameters.items()}
        for n, p in parameters.items():
            p.data = self._float_head[n]
        try:
            yield
        finally:
            for n, p in parameters.items():
                p.data = now[n]

    def load_outside(self) -> None:
        """The embeddings, the last norm and the head."""
        self.metamodel.load(self.metamodel.outside(), self.dtype)
        if self.rotation is not None:
            self.untied = rotate_ends(self.metamodel.model, self.metamodel.blocks, self.rotation)
            if self.untied:
                self.notes = ["head and embedding shared their weight; by the rotation each has its own now"]

    def outside(self, solved: list[SolvedWeight]) -> dict[str, Tensor]:
        """What the folder will hold besides the blocks."""
        found = self._tensors(self.metamodel.outside(), solved)
        untied = {name: head.to(self.stored).clone() for name, head in self.untied.items()}
        return found | untied | dict(self.metamodel.folder.tensors(self.metamodel.unused))

    def solve_head(self, text: TokenBatches | None, on_weight: Callable[[SolvedWeight], None]) -> list[SolvedWeight]:
        """Quantize what lies behind the blocks and a rule asks for; ``load_outside`` comes first."""
        metamodel = self.metamodel
        plans = [t for t in self.plans if t.tail and t.touched]
        if not plans:
            return []
        names = {t.slice.parameter for t in plans}
        parameters = {n: metamodel.model.get_parameter(n) for n in names}
        self._float_head = {n: p.detach().clone() for n, p in parameters.items()}

        def steps() -> Iterator[BatchRun]:
            assert text is not None and text.activations is not None
            hiddens = text.activations.read(len(metamodel.blocks))
            for hidden, inputs, mask in zip(hiddens, text.inputs(), text.masks(), strict=True):
                plain = _plain(metamodel.model, inputs)
                yield BatchRun(partial(run_tail, metamodel.model, metamodel.blocks, plain, hidden, self.tupled), mask)

        return solve_block(BlockWeights(metamodel.model, parameters), plans, steps, self.recipe, on_weight)


def journal_row(weight: SolvedWeight) -> dict[str, Any]:
    """A solution as it stands in the journal."""
    line = weight.record
    return {
        "name": weight.plan.name,
        "method": line.method if line else "none",
        "error": line.output_error if line else None,
        "rtn_error": line.rtn_error if line else None,
        "damping": line.damping if line else None,
        "tokens": (line.tokens if line else None) or 0,
        "seconds": weight.seconds,
        "note": weight.note,
    }


def _row(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[:1] for name, value in inputs.items()}


def _plain(model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of a call without a cache."""
    causal = hasattr(getattr(model, "config", None), "use_cache")
    return {**inputs, **({"use_cache": False} if causal else {})}
