"""Compress a folder in the Hugging Face layout: plan, stream, measure, write."""

import math
import resource
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tersor.arguments import path_of
from tersor.checkpoints.destination import check_folder
from tersor.errors import CheckpointError, TersorError
from tersor.files import disk_full, working_folder
from tersor.former_names import takes_former_name
from tersor.measure.environment import describe_environment
from tersor.measure.language import LanguageReport, Training
from tersor.measure.perplexity import comparison
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.folder.deployed import InFolder
from tersor.pipeline.folder.job import Job, fingerprint, prepare_job, with_padding
from tersor.pipeline.folder.journal import Journal, journal
from tersor.pipeline.folder.lines import record, unreached, worse
from tersor.pipeline.folder.metamodel import quiet
from tersor.pipeline.folder.running import FolderHost, Streamed
from tersor.pipeline.folder.text import Data
from tersor.pipeline.folder.write import check_readable, finish
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Recipe
from tersor.turns import in_turn
from tersor.words import _


@takes_former_name("counted", "token_mask")
@in_turn
def compress_folder(
    source: str | Path,
    out: str | Path,
    recipe: Recipe | str | Path = "int4-gptq",
    data: Data | None = None,
    *,
    evaluate: Data | None = None,
    layout: str = "compressed-tensors",
    samples: int = 128,
    length: int | None = None,
    force: bool = False,
    progress: bool = True,
    build: Callable[[], nn.Module] | None = None,
    token_mask: Tensor | None = None,
    device: str | torch.device | None = None,
) -> Compressed:
    """Quantize the weights of a language model block by block, and write a folder that other tools open.

    At any time one block, the embeddings or the head is in memory, besides a batch of activations; these are kept
    on disk beside ``out``. The step ``train`` trains each block once it is solved, and then scales with the whole model
    in memory, if it fits, which the report says. An interrupted run resumes where it stopped when it is called again,
    and produces the same bytes.

    Args:
        source: a folder with config.json, safetensors and a tokenizer.
        out: the folder to write.
        recipe: of weights only, such as ``int4-gptq`` (arXiv 2210.17323), ``int4-weight``, ``int8-weight`` or, trained,
            ``int2-train`` (arXiv 2407.11062).
        data: the calibration data, needed by recipes whose solver requires it: a text; the path of one, or of a .jsonl
            file of records ``{"text": "..."}`` and ``{"messages": [{"role": ..., "content": ...}, ...]}``; a list of
            texts and of such lists of messages; or tokens int64 [windows, length].
        evaluate: data of the same kind, for perplexity and divergence in the report; never used for calibration.
        layout: how the files store codes and scales, a name in ``LAYOUTS``; or float weights with zeros, a name in
            ``SPARSE_LAYOUTS`` (``tersor compress --help`` prints both).
        samples: windows of ``data``; length: tokens of each window, by default 512, or fewer if the model requires it.
        force: replace ``out`` if it contains only what Tersor wrote, or nothing, and discard parts of another run.
        build: creates the model if transformers does not know its architecture; its parameters are then on ``meta``.
        token_mask: for ``data`` given as tokens: bool [windows, length], True for real tokens, False for padding.
            The former name ``counted`` is still accepted.
        device: where blocks are computed and their weights solved, one at a time, such as ``cuda``, ``cuda:1`` or
            ``mps``; None: the CPU. Codes may differ from the CPU's where a weight is at the middle of two codes, and
            then, at the same error, in later layers that compensate for it.

    Returns:
        A ``Compressed``, whose ``report`` is a LanguageReport and whose ``model`` is loaded on first use; attributes
        of the report are attributes of the result too.

    Raises:
        CheckpointError: a folder that is incomplete or contains an adapter, a weight that the layout cannot store, or a
            result that transformers would not open as intended; ``out`` is then not written.
        RecipeError: a recipe whose requirements are not met.
        EngineError: a device that is not there, with those that are.
        CalibrationError: a layer that cannot be solved, by name.
        SavedFolderError: ``out`` exists, holds anything not Tersor's, cannot be written, or another run is writing it.
        MetricError, TaskError: ``data`` or ``evaluate`` that cannot be read, by file and line, is shorter than a
            window, or has windows longer than the model supports.
    """
    source = path_of("source", source, CheckpointError)
    out = check_folder(out, force, (source,)).resolve()
    with working_folder(out) as parts:  # before long work, so that a second run is refused at once
        chosen = {"evaluate": evaluate, "layout": layout, "samples": samples, "length": length}
        job = prepare_job(source, recipe, data, **chosen, build=build, device=device)
        if token_mask is not None:
            job = with_padding(job, token_mask)
        job.preflight.check_disk(out)
        check_readable(job)
        return _compressed(job, journal(parts, out, fingerprint(job), force), out, force, progress)


def _compressed(job: Job, notes: Journal, out: Path, force: bool, progress: bool) -> Compressed:
    """Run the job, from where its last run stopped."""
    with Stages(progress) as stages, quiet():
        subject = Subject(None, FolderHost(job, notes), seed=job.recipe.seed)
        try:
            for step in job.recipe.steps:
                subject = step(subject, None, stages)
            if subject.details is None:
                subject = subject.host.float_blocks(subject, stages)
            job = subject.host.job  # of the pruned model, if it is
            report = _report(job, subject, stages)
            report = finish(job, notes, subject.details.outside, report, out, force)
        except (OSError, TersorError) as error:
            if not disk_full(error):
                raise
            raise CheckpointError(
                f"the disk of {out.parent} is full; what is done is kept in {notes.folder}: make room and repeat"
            ) from error
    return Compressed(subject.result(), job.recipe, report, InFolder(out))


def _report(job: Job, subject: Subject, stages: Stages) -> LanguageReport:
    """Measure on the held-out text, and assemble all figures."""
    found: Streamed = subject.details
    streaming, scores = found.streaming, {}
    if job.evaluation is not None and found.original and found.compressed:
        with stages.stage("measure", _("perplexity"), len(job.evaluation)) as bar:
            after = found.whole.logits if found.whole else streaming.tail(found.compressed)
            before, device = streaming.tail(found.original), job.metamodel.device
            scored = comparison(after, before, job.evaluation, batch=1, device=device, progress=bar.at)
        scores = {"original": scored.reference, "compressed": scored.model, "divergence": scored.divergence}
    by_name = {r["name"]: r for r in found.records}
    weights = tuple(record(t, by_name.get(t.name), job) for t in job.plans)
    quantized = [(w, t) for w, t in zip(weights, job.plans, strict=True) if w.format and t.spec]
    elements = sum(math.prod(t.shape) for _, t in quantized)
    stored = job.source.nbytes
    saved = sum(job.source.entries[t.slice.name].nbytes - w.bytes for w, t in quantized)
    return LanguageReport(
        model=job.source.path.resolve().name,
        architecture=type(job.metamodel.model).__name__,
        recipe=job.recipe.name,
        layout=job.layout,
        environment=describe_environment(
            threads=torch.get_num_threads(), precision=str(streaming.dtype)[6:], device=job.metamodel.device
        ),
        seed=job.recipe.seed,
        calibration=str(job.calibration.protocol) if job.calibration else None,
        original_bytes=job.dense.folder.nbytes,
        compressed_bytes=stored - saved + sum(t.nbytes for t in streaming.untied.values()),
        bits_per_weight=8 * sum(w.bytes for w, _ in quantized) / elements if elements else None,
        weights=weights,
        training=tuple(Training(**row) for row in found.trained),
        pruning=tuple(subject.prunings),
        warnings=(
            *job.preflight.warnings,
            *(note for p in subject.prunings for note in p.notes),
            *streaming.notes,
            *unreached(found.records),
            *worse(found.trained),
        ),
        timings_s=stages.seconds,
        peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        **scores,
    )
