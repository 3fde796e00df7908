"""Training of a streamed model end to end, with the whole quantized model in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor

from tersor.measure.formatting import size_text
from tersor.network.blocks.calls import plain
from tersor.network.blocks.chain import get_tensor
from tersor.numerics import QTensor
from tersor.pipeline.folder.activations import TokenBatches
from tersor.pipeline.folder.blockwise import oriented
from tersor.pipeline.folder.job import Job
from tersor.pipeline.folder.journal import Journal, save
from tersor.pipeline.folder.plan import WeightPlan
from tersor.pipeline.folder.stream import Streaming
from tersor.pipeline.folder.write import codes_in, tensors_of
from tersor.training.language.best import OnEpoch, Trained
from tersor.training.language.whole import CodedPart, LatentModel, ScaledModel, TextBatch, train_whole
from tersor.words import said

# Bytes for each parameter of the blocks: its code, its value, the gradient of that, and room for activations; twice
# that, if it has a latent weight.
_BYTES = 16
_PARTS = ("codes", "scale", "zero_point")


@dataclass(frozen=True, eq=False)
class WholeModel:
    """A streamed model with all its quantized blocks in memory.

    Args:
        streaming: the model after its last block, with its embeddings and head.
        plans: of the quantized weights of its blocks, by their names in the folder.
        qtensors: their codes, by the same names.
    """

    streaming: Streaming
    plans: Mapping[str, WeightPlan]
    qtensors: dict[str, QTensor]

    @classmethod
    def loaded(cls, job: Job, streaming: Streaming) -> "WholeModel":
        """The model with the tensors that the journal stores."""
        metamodel, journal = job.metamodel, streaming.journal
        metamodel.load(metamodel.parameters(metamodel.blocks.path), streaming.dtype)
        plans, qtensors = {t.slice.name: t for t in job.plans if t.spec and not t.tail}, dict[str, QTensor]()
        for number in range(len(metamodel.blocks)):
            tensors = load_file(journal.shard(number))
            found = codes_in(job, tensors)
            qtensors |= found
            for name in set(tensors) & set(metamodel.slices):
                place = metamodel.slices[name]
                if place.whole:
                    place.part(get_tensor(metamodel.model, place.parameter).data).copy_(tensors[name])
        whole = cls(streaming, plans, qtensors)
        whole.put()
        return whole

    def put(self) -> None:
        """Write the values of the codes into the model."""
        for name, qtensor in self.qtensors.items():
            plan = self.plans[name]
            parameter = get_tensor(self.streaming.metamodel.model, plan.slice.parameter)
            _view(plan, parameter.data).copy_(qtensor.dequantize())

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """``[windows, length]`` → ``[windows, length, vocabulary]``."""
        model = self.streaming.metamodel.model
        return model(**plain(model, {"input_ids": ids})).logits

    def parts(self) -> list[CodedPart]:
        """The quantized weights, where training of the scales starts."""
        device, pairs = self.streaming.metamodel.device, [(self.plans[n], q) for n, q in self.qtensors.items()]
        return [CodedPart(t.slice.parameter, partial(_view, t), q.to(device)) for t, q in pairs]


def train_end_to_end(
    job: Job, streaming: Streaming, calibration: TokenBatches, on_epoch: OnEpoch | None = None
) -> tuple[WholeModel | None, dict[str, Any] | str]:
    """Train the scales of all blocks, and write them into the journal's shards; a stored result is taken up.

    Returns:
        The model with its new scales, None if the old ones are kept; and what training gave, or why it was not done.
    """
    assert job.training is not None
    journal, last = streaming.journal, len(job.metamodel.blocks)
    needed, free = _needed(job), free_bytes(job.metamodel.device)
    if not journal.done(last) and needed > free:
        return None, said(
            "scales were not trained end to end: the whole model in memory takes {needed}, and {free} are free",
            needed=size_text(needed), free=size_text(free),
        )  # fmt: skip
    whole = WholeModel.loaded(job, streaming)
    if not journal.done(last):
        student, trained = _trained(job, whole, calibration, on_epoch)
        found = _tensors(whole, student) if trained.kept else {}
        journal.write(last, {n: t.detach().cpu() for n, t in found.items()}, {"name": "", **trained.row()})
    row = journal.record(last)
    if not row["kept"]:
        return None, row
    found = load_file(journal.shard(last))
    for name, q in whole.qtensors.items():
        codes, scale, zero_point = (found.pop(f"{name}:{part}") for part in _PARTS)
        whole.qtensors[name] = QTensor(codes, scale, zero_point, q.spec)
    for name, value in found.items():
        get_tensor(job.metamodel.model, name).data.copy_(value)
    whole.put()
    _rewrite(journal, whole)
    return whole, row


def _trained(
    job: Job, whole: WholeModel, calibration: TokenBatches, on_epoch: OnEpoch | None
) -> tuple[ScaledModel | LatentModel, Trained]:
    streaming, model = whole.streaming, job.metamodel.model
    inputs, reference = list(calibration.inputs()), streaming.reference
    assert reference is not None
    assert job.training is not None

    def batch(k: int) -> TextBatch:
        rows = slice(k * calibration.batch, (k + 1) * calibration.batch)
        mask = None if calibration.token_mask is None else calibration.token_mask[rows]
        return TextBatch(plain(model, inputs[k]), streaming.logits_at(reference, rows), mask)

    names = _norms(job) if job.training.norms else []
    return train_whole(model, whole.parts(), names, batch, len(inputs), job.training, job.recipe.seed, on_epoch)


def _tensors(whole: WholeModel, student: ScaledModel | LatentModel) -> dict[str, Tensor]:
    """What training changed, for the journal."""
    pairs = zip(whole.qtensors, student.qtensors(), strict=True)
    codes = {f"{name}:{part}": getattr(q, part) for name, q in pairs for part in _PARTS}
    return codes | student.norms()


def _norms(job: Job) -> list[str]:
    """The norms and biases of the blocks."""
    inside = job.metamodel.blocks.path + "."
    found = [(n, p) for n, p in job.metamodel.model.named_parameters() if n.startswith(inside) and p.ndim < 2]
    return [n for n, p in found if p.is_floating_point()]


def _rewrite(journal: Journal, whole: WholeModel) -> None:
    """Store the codes with their new scales, and the norms."""
    metamodel, layout = whole.streaming.metamodel, whole.streaming.layout
    for number in range(len(metamodel.blocks)):
        parameters = metamodel.parameters(metamodel.blocks.name(number))
        save(tensors_of(metamodel, layout, parameters, whole.qtensors), journal.shard(number))


def _needed(job: Job) -> int:
    """Bytes of the whole model while its scales are trained."""
    inside = job.metamodel.blocks.path + "."
    assert job.training is not None
    size = _BYTES if job.training.end_to_end == "scales" else 2 * _BYTES
    return sum(size * p.numel() for n, p in job.metamodel.model.named_parameters() if n.startswith(inside))


def free_bytes(device: torch.device) -> int:
    """Bytes that are free where the model is computed."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _view(plan: WeightPlan, parameter: Tensor) -> Tensor:
    """The weight [out, in] of a parameter."""
    return oriented(plan, plan.slice.part(parameter))

