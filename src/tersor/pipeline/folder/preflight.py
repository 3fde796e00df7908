"""Predictions before a run: memory, disk, what stays float, what will run fast."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tersor.checkpoints.layouts import LAYOUTS
from tersor.errors import CheckpointError
from tersor.files import parts_of
from tersor.measure.formatting import size_text
from tersor.measure.windows import Windows
from tersor.pipeline.folder.activations import TOKENS
from tersor.pipeline.folder.blockwise import corrects_upstream_error
from tersor.pipeline.folder.metamodel import MetaModel
from tersor.pipeline.folder.plan import WeightPlan
from tersor.training.language.blocks import BlockTraining
from tersor.words import said

# Bytes for each weight of a block that is trained: the float32 latent weight, its gradient, Adam's two moments, the
# best one so far, and the values that the block computes with.
_TRAINED = 24


@dataclass(frozen=True)
class Preflight:
    """Predictions, in bytes.

    Args:
        original, compressed: of the weights in the files.
        memory: the peak beyond that of the imports.
        disk: space needed beside the result during the run.
        quantized, pruned, skipped: the number of weights that have codes, have zeros, or stay unchanged.
        warnings: sentences.
    """

    original: int
    compressed: int
    memory: int
    disk: int
    quantized: int
    pruned: int
    skipped: int
    warnings: tuple[str, ...]

    def bytes_of(self, plan: WeightPlan) -> int:
        """The size of a quantized weight in the file."""
        assert plan.spec is not None
        return plan.spec.nbytes(plan.shape)

    def check_disk(self, out: Path) -> None:
        """Refuse to start a run for which the disk is too small.

        Raises:
            CheckpointError: with the free and the required space.
        """
        folder = next(p for p in (out.parent, *out.parent.parents) if p.exists())
        partial = parts_of(out)
        there = sum(p.stat().st_size for p in _stored(partial)) if partial.is_dir() else 0
        free, needed = shutil.disk_usage(folder).free, max(0, self.compressed + self.disk - there)
        if free < needed:
            raise CheckpointError(
                f"{folder} has {size_text(free)} free and {size_text(needed)} are needed (result "
                f"{size_text(self.compressed)}, activations {size_text(self.disk)}); make room, choose another folder, "
                "or give fewer --samples"
            )


def _stored(partial: Path) -> list[Path]:
    """The files of an interrupted run, and of its steps `prune`."""
    return [p for pattern in ("*", "prune-*/*") for p in partial.glob(pattern) if p.is_file()]


def preflight(
    metamodel: MetaModel,
    plans: list[WeightPlan],
    layout: str,
    calibration: Windows | None,
    evaluation: Windows | None,
    training: BlockTraining | None = None,
    sparse: str | None = None,
) -> Preflight:
    """Predict memory and disk before any weight is read; with ``sparse``, zeros are not stored."""
    folder = metamodel.folder
    size = folder.dtype.itemsize
    chosen = [t for t in plans if t.spec]
    compressed = folder.nbytes - sum(
        folder.entries[t.slice.name].nbytes - t.spec.nbytes(t.shape) for t in chosen if t.spec
    )
    inside = metamodel.blocks.path + "."
    block = sum(e.nbytes for p in metamodel.slices.values() if (e := folder.entries[p.name]) and inside in p.parameter)
    block //= len(metamodel.blocks)
    outside = folder.nbytes - block * len(metamodel.blocks)
    width = max((t.shape[1] for t in plans if t.touched), default=0)
    grams = 0 if calibration is None else 4 * 4 * width**2
    # A block with its codes, one Hessian with its factors, and the values of some thousand tokens.
    memory = max(outside, 2 * block + grams) + 8 * TOKENS * width * max(size, 4)
    if training is not None:
        memory += _TRAINED * (block // size)
    hidden = folder.config.get("hidden_size") or min((t.shape[1] for t in plans if t.touched), default=0)
    streams = 2 if training is not None or any(corrects_upstream_error(t) for t in plans) else 1
    tokens = sum(w.ids.numel() * k for w, k in ((calibration, streams), (evaluation, 2)) if w is not None)
    return Preflight(
        original=folder.nbytes,
        compressed=compressed,
        memory=memory,
        disk=2 * tokens * hidden * (4 if folder.dtype == torch.float16 else size),
        quantized=len(chosen),
        pruned=sum(t.sparsity is not None for t in plans),
        skipped=sum(not t.touched for t in plans),
        warnings=(
            *_warnings(metamodel, plans, layout, calibration, sparse),
            *_same(calibration, evaluation),
        ),
    )


def with_pruning(found: Preflight, dense: MetaModel, small: MetaModel) -> Preflight:
    """The predictions of a run that prunes: the smaller blocks are stored twice, and both models are streamed."""
    block = dense.folder.nbytes // len(dense.blocks)
    inputs = {p.shape[-1] for p in dense.model.parameters() if p.ndim > 1 and p.shape[-1] < 2**16}
    moments = 4 * 8 * max(inputs, default=0) ** 2
    return replace(
        found,
        original=dense.folder.nbytes,
        memory=max(found.memory, 3 * block + moments),
        disk=found.disk + found.disk // 2 + small.folder.nbytes,
    )


def _warnings(
    metamodel: MetaModel, plans: list[WeightPlan], layout: str, calibration: Windows | None, sparse: str | None
) -> list[str]:
    found = []
    ragged = [
        t for t in plans if t.spec and t.spec.granularity.kind == "group" and t.shape[1] % t.spec.granularity.size
    ]
    if ragged:
        t = ragged[0]
        assert t.spec is not None
        found.append(
            said(
                "{count} layers do not divide by the group ({name}: {inputs} inputs by {size}); their last group is "
                "shorter",
                count=len(ragged), name=t.name, inputs=t.shape[1], size=t.spec.granularity.size,
            )
        )  # fmt: skip
    unfit = [t for t in plans if "fallback: float" in t.reason]
    if unfit:
        found.append(
            said("{count} layers stay float by `fallback: float`: {names}", count=len(unfit), names=_first(unfit))
        )
    turned = [t for t in plans if t.spec and t.transposed]
    if turned:
        found.append(
            said(
                "{count} weights belong to no nn.Linear ({name}); Tersor reads them back, other tools may not",
                count=len(turned), name=turned[0].name,
            )
        )
    uneven = [t for t in plans if t.spec and t.slice.index is not None and not t.spec.symmetric]
    if uneven and LAYOUTS[layout].fused_experts_alike:
        found.append(said("transformers does not open asymmetric experts ({name}); Tersor does", name=uneven[0].name))
    if sparse is None and any(t.sparsity and t.spec is None for t in plans):
        found.append(said("zeros among float weights make neither the file smaller nor an engine here faster"))
    found += LAYOUTS[layout].reader_limits([t.spec for t in plans if t.spec])
    bits = {t.spec.format.bits for t in plans if t.spec}
    if bits & {2, 3}:
        found.append(said("2 and 3 bits save memory here, not time: no engine on this machine computes with them"))
    if metamodel.unused:
        count = len(metamodel.unused)
        found.append(said("{count} tensors of the folder have no place in the model; they are copied", count=count))
    widest = max((t.shape[1] for t in plans if t.touched), default=0)
    if metamodel.untied:
        found.append(
            said(
                "config.json ties {names} to other weights, but the folder stores values of its own: they are "
                "kept, as transformers does",
                names=", ".join(metamodel.untied),
            )
        )
    if calibration is not None and calibration.ids.numel() < 16 * widest:
        found.append(
            said(
                "{tokens} tokens calibrate layers of {inputs} inputs; 16 for each input would be better",
                tokens=calibration.ids.numel(), inputs=widest,
            )
        )
    return found


def _first(plans: list[WeightPlan]) -> str:
    if len(plans) == 1:
        return plans[0].name
    return said("{names} and {count} more", names=plans[0].name, count=len(plans) - 1)


def _same(calibration: Windows | None, evaluation: Windows | None) -> list[str]:
    if calibration is None or evaluation is None or calibration.protocol.data != evaluation.protocol.data:
        return []
    return [
        said("the evaluation text (--valid) is also the calibration text (--data): the loss on other text is larger")
    ]
