"""Train a quantized model end to end, its scales alone or its weights too, against the float model's predictions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.numerics import QTensor
from tersor.numerics.ranges import expand
from tersor.training.language.best import OnEpoch, TokenError, Trained, train_best
from tersor.training.language.blocks import BlockTraining, Part, SolvedPart, TrainableBlock, placed
from tersor.training.quantizers.rounding import Stored


@dataclass(frozen=True, eq=False)
class CodedPart(Part):
    """A quantized weight of a model, with its codes and scales."""

    qtensor: QTensor


@dataclass(frozen=True, eq=False)
class TextBatch:
    """A batch of text.

    Args:
        inputs: the model's arguments, with ``input_ids`` int64 [windows, length].
        logits: [windows, length, vocabulary] of the float model.
        token_mask: bool [windows, length], True for real positions; None: all are real.
    """

    inputs: Mapping[str, Any]
    logits: Tensor
    token_mask: Tensor | None = None


class ScaledModel(nn.Module):
    """A model whose quantized weights have fixed codes and learned scales.

    Args:
        model: with all its parameters; those of the parts are not read.
        parts: its quantized weights.
        names: its norms and biases that are trained, too.
    """

    def __init__(self, model: nn.Module, parts: Sequence[CodedPart], names: Sequence[str] = ()) -> None:
        super().__init__()
        self._model, self._parts = (model,), tuple(parts)  # in tuples: they are no submodules
        self.log_scales = nn.ParameterList([p.qtensor.scale.detach().float().log() for p in parts])
        self.names = tuple(names)
        self.others = nn.ParameterList([model.get_parameter(n).detach().float().clone() for n in names])

    def values(self) -> dict[str, Tensor]:
        """The quantized parameters, by name, in the model's dtype."""
        values = []
        for part, scale in zip(self._parts, self.scales(), strict=True):
            q = part.qtensor
            step, zero = (expand(t, q.shape, q.spec.block) for t in (scale, q.zero_point))
            values.append((q.codes.float() - zero) * step)
        return placed(self._model[0], self._parts, values) | self.norms()

    def norms(self) -> dict[str, Tensor]:
        """The trained norms and biases, by name, in the model's dtype."""
        pairs = zip(self.names, self.others, strict=True)
        return {name: value.to(self._model[0].get_parameter(name).dtype) for name, value in pairs}

    def scales(self) -> list[Tensor]:
        """The scales as stored, with gradients."""
        dtypes = [getattr(torch, p.qtensor.spec.scale_dtype) for p in self._parts]
        return [Stored.apply(torch.exp(log), dtype) for log, dtype in zip(self.log_scales, dtypes, strict=True)]  # type: ignore[misc]

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        """The logits, [windows, length, vocabulary]."""
        return torch.func.functional_call(self._model[0], self.values(), (), dict(inputs)).logits

    def groups(self, weight_rate: float, scale_rate: float) -> list[dict[str, Any]]:
        """The optimizer's parameters with their rates; no weight is trained."""
        rate = scale_rate
        norms = [{"params": [v], "lr": rate * v.detach().abs().mean().item()} for v in self.others]
        return [{"params": list(self.log_scales), "lr": rate}, *norms]

    def qtensors(self) -> list[QTensor]:
        """The codes with the learned scales."""
        pairs = zip(self._parts, self.scales(), strict=True)
        return [QTensor(p.qtensor.codes, s.detach(), p.qtensor.zero_point, p.qtensor.spec) for p, s in pairs]


class LatentModel(TrainableBlock):
    """A model whose quantized weights are trained together with their scales, from the middles of their cells on.

    Args:
        model: with all its parameters.
        parts, names: as in ``ScaledModel``.
    """

    def __init__(self, model: nn.Module, parts: Sequence[CodedPart], names: Sequence[str] = ()) -> None:
        starts = [SolvedPart(p.parameter, p.part, p.parameter, p.qtensor.dequantize(), p.qtensor) for p in parts]
        super().__init__(model, starts, names)

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        """The logits, [windows, length, vocabulary]."""
        return torch.func.functional_call(self._block[0], self.values(), (), dict(inputs)).logits


def train_whole(
    model: nn.Module,
    parts: Sequence[CodedPart],
    names: Sequence[str],
    batch: Callable[[int], TextBatch],
    count: int,
    options: BlockTraining,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> tuple[ScaledModel | LatentModel, Trained]:
    """Train by the divergence from the float model; the best epoch on the held-out batches is kept.

    EfficientQAT's second phase, arXiv 2407.11062, whose loss is the cross-entropy of the text.

    Args:
        names: the norms and biases that are trained with them.
        batch: gives one of the ``count`` batches; the last ones are held out.
        on_epoch: called with the number of epochs done and the held-out divergence.

    Raises:
        CalibrationError: too few batches, or a divergence that is not finite.
    """
    held = options.held_out_of(count)
    student = (ScaledModel if options.end_to_end == "scales" else LatentModel)(model, parts, names)
    rates = options.end_to_end_weight_rate, options.end_to_end_rate
    optimizer = torch.optim.AdamW(student.groups(*rates), weight_decay=0.0)
    objective = TokenError(_divergence, "the divergence", "end_to_end_rate")
    epochs = options.end_to_end_epochs
    return student, train_best(student, optimizer, objective, batch, count, held, epochs, seed, on_epoch)


def mean_divergence(student: nn.Module, batches: Iterable[TextBatch]) -> float:
    """KL(float ‖ quantized) in nats per token."""
    return TokenError(_divergence, "", "").mean(student, batches)


def _divergence(student: nn.Module, batch: TextBatch) -> tuple[Tensor, int]:
    """The sum of KL(float ‖ quantized) over real positions, and their number."""
    ours, theirs = (F.log_softmax(t.float(), -1) for t in (student(batch.inputs), batch.logits))
    each = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    each = each if batch.token_mask is None else each[batch.token_mask]
    return each.sum(), each.numel()
