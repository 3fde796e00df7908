"""The steps of a recipe over a folder: prune, quantize and train its blocks, one in memory at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from tersor.checkpoints.layouts import LAYOUTS
from tersor.measure.windows import Windows
from tersor.pipeline.folder.activations import TokenBatches
from tersor.pipeline.folder.blockwise import SolvedWeight
from tersor.pipeline.folder.host import FOLDER
from tersor.pipeline.folder.job import Job
from tersor.pipeline.folder.journal import Journal
from tersor.pipeline.folder.metamodel import MetaModel
from tersor.pipeline.folder.plan import FLOAT, WeightPlans
from tersor.pipeline.folder.pruned import Texts, original_activations, pruner
from tersor.pipeline.folder.stream import Streaming
from tersor.pipeline.folder.trained.blocks import BlockTrainer
from tersor.pipeline.folder.trained.whole import WholeModel, train_end_to_end
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Prune, Quantize
from tersor.task import Task
from tersor.words import _


@dataclass(frozen=True)
class Streamed:
    """The solved weights of a folder.

    Args:
        streaming: the model after its last block, with its embeddings and head.
        records: a line for every weight that was solved.
        outside: the tensors that the folder stores besides its blocks.
        original, compressed: the text to evaluate on, at the last block of either model; None without one.
        calibration: the calibration text; None without one.
        trained: what training gave, for each block, and for the scales end to end.
        whole: the model with scales trained end to end; None: they were not, or to no avail.
    """

    streaming: Streaming
    records: list[dict[str, Any]]
    outside: dict[str, Tensor]
    original: TokenBatches | None
    compressed: TokenBatches | None
    calibration: TokenBatches | None = None
    trained: Sequence[dict[str, Any]] = ()
    whole: WholeModel | None = None


@dataclass(frozen=True)
class FolderHost:
    """Folders in the Hugging Face layout, one block in memory at a time.

    Args:
        job: the folder, its plans and its data.
        journal: the finished blocks.
        present: the model after the steps `prune` so far; None: there was none.
    """

    job: Job
    journal: Journal
    present: MetaModel | None = None
    name: ClassVar[str] = FOLDER.host

    def prune(self, step: Prune, subject: Subject, task: Task | None, stages: Stages) -> Subject:
        """The subject with a smaller model, whose blocks stand in a folder of the journal's own."""
        job, number = self.job, len(subject.prunings)
        folder = self.journal.folder / f"prune-{number}"
        folder.mkdir(exist_ok=True)
        texts = Texts(job.calibration, job.token_mask, None if number else job.evaluation)
        with stages.stage("prune", _("pruning"), len(job.dense.blocks)) as bar:
            run = pruner(step, self.present or job.dense, Journal(folder), texts, subject.seed)
            small, pruned = run.run(bar)
        host = replace(self, present=small)
        return replace(
            subject, host=host, history=(*subject.history, step), prunings=(*subject.prunings, pruned)
        )

    def float_blocks(self, subject: Subject, stages: Stages) -> Subject:
        """The subject of a recipe that only prunes, with its blocks written and measured."""
        found = self.quantize(FLOAT, subject, None, stages)
        return replace(found, history=subject.history)

    def quantize(self, step: Quantize, subject: Subject, task: Task | None, stages: Stages) -> Subject:
        """The subject with every block and the head solved; ``details`` holds a ``Streamed``."""
        job = self.job if self.present is None else self.job.on(self.present)
        count, tokens = len(job.metamodel.blocks), partial(_tokens, device=job.metamodel.device)
        original, compressed = tokens("original", job.evaluation), tokens("compressed", job.evaluation)
        batch = job.training.batch if job.training else None
        calibration = None if step is FLOAT else tokens("calibration", job.calibration, job.token_mask, batch)
        streamed = original if self.present is None else None  # the step `prune` streamed it already
        texts = [t for t in (calibration, streamed, compressed) if t is not None]
        number = 0

        def on_epoch(epoch: int, error: float) -> None:
            bar.say(_trained_line(_block(number, count), epoch, error))

        train = BlockTrainer(job.training, subject.seed, on_epoch) if job.training else None
        streaming = Streaming(
            job.metamodel, step, subject.seed, LAYOUTS[job.layout], job.plans, self.journal, train
        )
        done = streaming.finished([])
        if texts:
            with stages.stage("record", _("embedding the text")):
                streaming.begin(texts, done)
                # The files show where the last run stopped; their sizes follow from the first block's input.
                done = streaming.finished(texts)
        if original is not None and compressed is not None and self.present is not None:
            self._take_original(original, compressed, count)
        with stages.stage("solve", _block(done, count), sum(t.touched for t in job.plans)) as bar:
            bar.at(sum(len(self.journal.record(k)["weights"]) for k in range(done)))

            def on_weight(weight: SolvedWeight) -> None:
                bar.say(_line(weight, min(number, count - 1), count))
                bar.advance()

            for number in range(done, count):
                streaming.block(number, calibration, streamed, compressed, on_weight)
            streaming.load_outside()
            head = streaming.solve_head(calibration, on_weight)
            outside = streaming.outside(head)
        found = [self.journal.record(k) for k in range(count)]
        records = [*(row for block in found for row in block["weights"]), *(weight.row() for weight in head)]
        trained = [block["training"] for block in found if block["training"]]
        details = Streamed(streaming, records, outside, original, compressed, calibration, trained)
        history, host = (*subject.history, step), replace(self, job=job)
        return replace(subject, host=host, plan=WeightPlans(job.plans), history=history, details=details)

    def _take_original(self, original: TokenBatches, compressed: TokenBatches, count: int) -> None:
        """Let the original text stand where the dense model's last block left it, as the smaller model numbers it."""
        folder, like = self.journal.folder / "prune-0", compressed.activations
        assert like is not None
        stored = original.store_in(folder, like.width, like.dtype)
        if (path := original_activations(folder)) is not None:
            path.rename(stored.at(count))

    def train(self, step: Any, subject: Subject, task: Task | None, stages: Stages) -> Subject:
        """The subject with its scales trained end to end; ``quantize`` has trained its blocks, one after the other."""
        streamed, options = subject.details, self.job.training
        if options is not None and options.end_to_end_epochs and streamed.calibration is not None:
            with stages.stage("train", _("scales, end to end"), options.end_to_end_epochs) as bar:

                def on_epoch(epoch: int, error: float) -> None:
                    bar.at(epoch)
                    bar.say(_trained_line(_("scales, end to end"), epoch, error))

                whole, row = train_end_to_end(self.job, streamed.streaming, streamed.calibration, on_epoch)
            notes, rows = ([row], []) if isinstance(row, str) else ([], [row])
            streamed.streaming.notes += notes
            subject = replace(subject, details=replace(streamed, whole=whole, trained=[*streamed.trained, *rows]))
        return replace(subject, history=(*subject.history, step))


def _tokens(
    name: str,
    windows: Windows | None,
    token_mask: Tensor | None = None,
    batch: int | None = None,
    *,
    device: torch.device,
) -> TokenBatches | None:
    if windows is None:
        return None
    return TokenBatches(name, windows.ids.to(device), None if token_mask is None else token_mask.to(device), batch)


def _line(weight: SolvedWeight, number: int, count: int) -> str:
    error = weight.record.output_error if weight.record else None
    line = _("{name}: {text}", name=_block(number, count), text=weight.plan.name.rsplit(".", 2)[-1])
    return line if error is None else _(", ").join((line, _("error {error}", error=f"{error:.2e}")))


def _trained_line(what: str, epoch: int, error: float) -> str:
    return _("{name}: {text}", name=what, text=_("epoch {epoch}, error {error}", epoch=epoch, error=f"{error:.3g}"))


def _block(number: int, count: int) -> str:
    return _("block {number} of {count}", number=number + 1, count=count)
