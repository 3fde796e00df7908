"""Compress a folder in the Hugging Face layout: plan, stream, measure, write."""

import hashlib
import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.checkpoints.hf_folder import HfFolder
from tersor.checkpoints.layouts import LAYOUTS
from tersor.errors import CheckpointError, RecipeError, SavedFolderError, TaskError
from tersor.measure.environment import describe_environment, versions
from tersor.measure.language import LanguageReport, WeightRecord
from tersor.measure.perplexity import comparison
from tersor.measure.windows import Windows
from tersor.pipeline.blockwise import SolvedWeight, needs_data
from tersor.pipeline.compressed import check_free
from tersor.pipeline.folder import finish
from tersor.pipeline.journal import journal
from tersor.pipeline.language_plan import Held, Target, plan
from tersor.pipeline.preflight import Preflight, preflight
from tersor.pipeline.progress import Stages
from tersor.pipeline.skeleton import Skeleton, import_transformers, quiet
from tersor.pipeline.stream import Streaming, told
from tersor.pipeline.stream_text import Text
from tersor.pipeline.text import Data, positions, windows
from tersor.recipe import Recipe, resolve


@dataclass(frozen=True)
class Job:
    """All that a run depends on, checked and ready.

    Args:
        calibration, evaluation: windows of tokens; None where none are needed.
        preflight: what can be said before anything runs.
        counted: which tokens of the calibration are real; None: all.
    """

    source: HfFolder
    skeleton: Skeleton
    recipe: Recipe
    layout: str
    targets: list[Target]
    calibration: Windows | None
    evaluation: Windows | None
    preflight: Preflight
    counted: Tensor | None = None


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
    counted: Tensor | None = None,
) -> LanguageReport:
    """Quantize the weights of a language model block by block, and write a folder that other tools open.

    At any time one block, the embeddings or the head is in memory, besides a batch of activations; these are kept
    on disk beside ``out``. A run that was killed goes on where it stopped when it is called again, and ends in the
    same bytes.

    Args:
        source: a folder with config.json, safetensors and a tokenizer.
        out: the folder to write.
        recipe: of weights only, such as ``int4-gptq`` (arXiv 2210.17323), ``int4-weight`` or ``int8-weight``.
        data: what to calibrate on, needed by recipes whose solver asks for it: a text; the path of one, or of a .jsonl
            file of records ``{"text": "..."}`` and ``{"messages": [{"role": ..., "content": ...}, ...]}``; a list of
            texts and of such lists of messages; or tokens int64 [windows, length].
        evaluate: the like, to report perplexity and divergence on; never what is calibrated on.
        layout: ``compressed-tensors``, ``gptq``, ``gptq_v2`` or ``awq``.
        samples: windows of ``data``; length: tokens of each window, by default 512, or fewer as the model takes.
        force: replace ``out``, and throw away parts of another run.
        build: makes the model where transformers does not know its architecture; its parameters are on ``meta`` then.
        counted: of ``data`` given as tokens, which are real and not padding, bool [windows, length].

    Raises:
        CheckpointError: a folder that is incomplete, or a weight that the layout cannot hold.
        RecipeError: a recipe that needs more than there is.
        CalibrationError: a layer that cannot be solved, by name.
        SavedFolderError: ``out`` exists, cannot be written, or another run is writing it.
        MetricError, TaskError: ``data`` or ``evaluate`` that cannot be read, by file and line, is shorter than a
            window, or has windows longer than the model takes.
    """
    out = Path(out).resolve()
    if Path(source).resolve().is_relative_to(out):
        raise SavedFolderError(f"{out} is or holds the model {source} itself; choose another folder")
    check_free(out, force)
    job = prepare_job(
        source, recipe, data, evaluate=evaluate, layout=layout, samples=samples, length=length, build=build
    )
    if counted is not None:
        job = with_padding(job, counted[:samples])
    job.preflight.check_disk(out)
    with journal(out, _fingerprint(job), force) as notes, Stages(progress) as stages, quiet():
        run = _Run(job, Streaming(job.skeleton, job.recipe, LAYOUTS[layout], job.targets, notes), stages)
        try:
            report = run.report(run.solve())
            finish(job, notes, run.head, report, out, force)
        except OSError as error:
            if error.errno != 28:
                raise
            raise CheckpointError(
                f"the disk of {out.parent} is full; what is done is kept in {notes.folder}: make room and repeat"
            ) from error
    return report


def prepare_job(
    source: str | Path,
    recipe: Recipe | str | Path,
    data: Data | None,
    *,
    evaluate: Data | None = None,
    layout: str = "compressed-tensors",
    samples: int = 128,
    length: int | None = None,
    build: Callable[[], nn.Module] | None = None,
    needs: bool = True,
) -> Job:
    """Everything that can be checked before a weight is read; with ``needs`` that there is data if it is needed."""
    if layout not in LAYOUTS:
        raise RecipeError(f"no layout {layout!r}; one of {', '.join(LAYOUTS)}")
    recipe = resolve(recipe)
    import_transformers()
    with quiet():
        folder = HfFolder(source)
        if "quantization_config" in folder.config:
            raise CheckpointError(f"{folder.path} is quantized already; give the original")
        skeleton = Skeleton(folder, build)
    targets = plan(skeleton, recipe, Held(LAYOUTS[layout], folder.dtype))
    if not any(t.touched for t in targets):
        raise RecipeError(f"nothing in {folder.path} can be compressed by {recipe.name}: {targets[0].reason}")
    turned = next((p.name for p in skeleton.pieces.values() if not p.whole), None)
    if turned and (recipe.awq or recipe.rotate):
        raise RecipeError(f"{turned}: transformers turns or mixes it on loading; leave `awq` and `rotate` out")
    if needs and data is None and (recipe.awq or recipe.rotate):
        raise RecipeError(f"`awq` and `rotate` of the recipe {recipe.name} ask for calibration text: give --data TEXT")
    if needs and data is None and (asking := [t for t in targets if t.touched and needs_data(t)]):
        raise RecipeError(
            f"{asking[0].name}: the solver of the recipe {recipe.name} asks for calibration text: give --data TEXT, or "
            "a recipe without, such as int4-weight"
        )
    length = length or min(512, positions(folder.config) or 512)
    calibration = windows(data, folder, length, samples, "data (--data)") if data is not None else None
    evaluation = windows(evaluate, folder, length, None, "evaluate (--valid)") if evaluate is not None else None
    found = preflight(skeleton, targets, recipe, layout, calibration, evaluation)
    return Job(folder, skeleton, recipe, layout, targets, calibration, evaluation, found)


def with_padding(job: Job, counted: Tensor) -> Job:
    """The job with padded positions that count for nothing.

    Raises:
        TaskError: it does not fit the windows.
    """
    experts = next((t.name for t in job.targets if t.touched and t.piece.index is not None), None)
    if job.recipe.awq or experts:
        what = "`awq`" if job.recipe.awq else f"the experts ({experts})"
        raise TaskError(f"padding would count for {what}; give windows without padding, and no `counted`")
    windows = job.calibration
    if windows is None or counted.shape != windows.ids.shape:
        wanted = None if windows is None else list(windows.ids.shape)
        raise TaskError(f"`counted` has the shape {list(counted.shape)}, the windows of `data` {wanted}")
    return replace(job, counted=counted.bool())


class _Run:
    """One run over all blocks."""

    def __init__(self, job: Job, streaming: Streaming, stages: Stages) -> None:
        self.job, self.streaming, self.stages = job, streaming, stages
        self.records: list[dict[str, Any]] = []
        self.head: dict[str, Tensor] = {}
        self.original = self._text("original", job.evaluation)
        self.compressed = self._text("compressed", job.evaluation)
        self.calibration = self._text("calibration", job.calibration, job.counted)

    @staticmethod
    def _text(name: str, windows: Windows | None, counted: Tensor | None = None) -> Text | None:
        return None if windows is None else Text(name, windows.ids, counted)

    def solve(self) -> list[dict[str, Any]]:
        """Every block, then the head; what is told of each weight."""
        streaming, job = self.streaming, self.job
        texts = [t for t in (self.calibration, self.original, self.compressed) if t is not None]
        count = len(job.skeleton.blocks)
        done = 0
        if texts:
            with self.stages.stage("record", "embedding the text"):
                done = self._begin(texts)
        else:
            done = streaming.finished([])
        self.records = [record for k in range(done) for record in streaming.journal.record(k)]
        weights = [t for t in job.targets if t.touched]
        with self.stages.stage("solve", f"block {done + 1} of {count}", len(weights)) as bar:
            bar.at(len(self.records))

            def on_weight(weight: SolvedWeight) -> None:
                self.records.append(told(weight))
                bar.say(_line(weight, number, count))
                bar.advance()

            for number in range(done, count):
                streaming.block(number, self.calibration, self.original, self.compressed, on_weight)
            number = count - 1
            streaming.load_outside()
            head = streaming.solve_head(self.calibration, on_weight)
            self.head = streaming.outside(head)
        return self.records

    def _begin(self, texts: list[Text]) -> int:
        # Where the last run stopped is seen by its files, whose sizes the first block's input tells.
        self.streaming.begin(texts, self.streaming.finished([]))
        return self.streaming.finished(texts)

    def report(self, records: list[dict[str, Any]]) -> LanguageReport:
        """Measure on the text that was kept apart, and write it all down."""
        job, scores = self.job, {}
        if job.evaluation is not None and self.original and self.compressed:
            with self.stages.stage("measure", "perplexity", len(job.evaluation)) as bar:
                after, before = (self.streaming.tail(text) for text in (self.compressed, self.original))
                found = comparison(after, before, job.evaluation, batch=1, progress=bar.at)
            scores = {"original": found.reference, "compressed": found.model, "divergence": found.divergence}
        by_name = {r["name"]: r for r in records}
        weights = tuple(_record(t, by_name.get(t.name), job) for t in job.targets)
        quantized = [(w, t) for w, t in zip(weights, job.targets, strict=True) if w.format and t.spec]
        elements = sum(t.shape[0] * t.shape[1] for _, t in quantized)
        before = job.source.nbytes
        saved = sum(job.source.entries[t.piece.name].nbytes - w.bytes for w, t in quantized)
        return LanguageReport(
            model=job.source.path.resolve().name,
            architecture=type(job.skeleton.model).__name__,
            recipe=job.recipe.name,
            layout=job.layout,
            environment=describe_environment(threads=torch.get_num_threads(), precision=str(self.streaming.dtype)[6:]),
            seed=job.recipe.seed,
            calibration=str(job.calibration.protocol) if job.calibration else None,
            original_bytes=before,
            compressed_bytes=before - saved + sum(t.nbytes for t in self.streaming.untied.values()),
            bits_per_weight=8 * sum(w.bytes for w, _ in quantized) / elements if elements else None,
            weights=weights,
            warnings=(*job.preflight.warnings, *self.streaming.notes),
            timings_s=self.stages.seconds,
            peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            **scores,
        )


def _record(target: Target, solved: dict[str, Any] | None, job: Job) -> WeightRecord:
    if solved is None or not target.touched:
        size = job.source.entries[target.piece.name].nbytes
        return WeightRecord(
            name=target.name, shape=target.shape, format=None, method="none", bytes=size, note=target.reason
        )
    kinds = [f"{target.sparsity} zeros"] if target.sparsity else []
    kinds += [str(target.spec)] if target.spec else []
    quantized = target.spec is not None and solved["note"] is None
    size = job.preflight.bytes_of(target) if quantized else job.source.entries[target.piece.name].nbytes
    kind = None if solved["note"] else ", ".join(kinds)
    return WeightRecord(shape=target.shape, format=kind, bytes=size, **solved)


def _line(weight: SolvedWeight, number: int, count: int) -> str:
    error = weight.record.output_error if weight.record else None
    share = "" if error is None else f", error {error:.2e}"
    return f"block {number + 1} of {count}: {weight.target.name.rsplit('.', 2)[-1]}{share}"


def _fingerprint(job: Job) -> dict[str, Any]:
    """All that the written bytes depend on."""
    files = sorted({e.file for e in job.source.entries.values()})
    stats = [(f, (s := (job.source.path / f).stat()).st_size, s.st_mtime_ns) for f in files]
    ids = {
        name: hashlib.sha256(w.ids.numpy().tobytes()).hexdigest() if w else None
        for name, w in (("calibration", job.calibration), ("evaluation", job.evaluation))
    }
    if job.counted is not None:
        ids["counted"] = hashlib.sha256(job.counted.numpy().tobytes()).hexdigest()
    return {
        "source": [str(job.source.path.resolve()), *map(list, stats)],
        "recipe": job.recipe.to_yaml(),
        "layout": job.layout,
        "config": hashlib.sha256((job.source.path / "config.json").read_bytes()).hexdigest(),
        "versions": versions(("tersor", "transformers", "safetensors")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **ids,
    }
