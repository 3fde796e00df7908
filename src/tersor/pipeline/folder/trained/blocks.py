"""Training of a block's solved weights in the stream, against the block's output in the float model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from tersor.pipeline.folder.activations import BlockCalls
from tersor.pipeline.folder.blockwise import BlockWeights, SolvedWeight, oriented, put
from tersor.pipeline.folder.plan import WeightPlan
from tersor.training.language.best import OnEpoch
from tersor.training.language.blocks import BlockTraining, SolvedPart, train_block


@dataclass(frozen=True)
class BlockTrainer:
    """Trains the quantized weights of a block in place; those of a block that training does not improve stay.

    Args:
        seed: of the order of the batches.
        on_epoch: called with the number of epochs done and the held-out error.
    """

    options: BlockTraining
    seed: int
    on_epoch: OnEpoch | None = None

    def __call__(
        self, part: BlockWeights, original: BlockWeights, solved: Sequence[SolvedWeight], calls: BlockCalls
    ) -> tuple[list[SolvedWeight], dict[str, Any] | None]:
        """Train what the solver found.

        Args:
            part: the block with the values of the solver's codes.
            original: the same block with its float weights.

        Returns:
            The weights, and the journal's entry; None if no weight of the block is trained.
        """
        prefix = _prefix(part)
        chosen = [w for w in solved if w.qtensor is not None and w.plan.sparsity is None]
        if not chosen:
            return list(solved), None
        parts = [_part(w, original, prefix) for w in chosen]
        seed = self.seed + calls.number
        student, trained = train_block(part.module, parts, calls, len(calls), self.options, seed, self.on_epoch)
        row = {"name": prefix.removesuffix("."), **trained.row()}
        if trained.kept == 0:
            return list(solved), row
        done = {id(w): q.to("cpu") for w, q in zip(chosen, student.qtensors(), strict=True)}
        weights = [_trained(w, done[id(w)]) if id(w) in done else w for w in solved]
        for weight in weights:
            put(weight, part.parameters[weight.plan.slice.parameter])
        for name, value in student.norms().items():
            part.module.get_parameter(name).data.copy_(value.detach())
        return weights, row


def _prefix(part: BlockWeights) -> str:
    """What stands before the block's own names in the names of its parameters."""
    own = {id(p): n for n, p in part.module.named_parameters()}
    name, parameter = next(iter(part.parameters.items()))
    return name.removesuffix(own[id(parameter)])


def _part(weight: SolvedWeight, original: BlockWeights, prefix: str) -> SolvedPart:
    plan, start = weight.plan, weight.qtensor
    assert start is not None
    float_weight = _view(plan, original.parameters[plan.slice.parameter].detach()).float()
    parameter = plan.slice.parameter.removeprefix(prefix)
    return SolvedPart(parameter, partial(_view, plan), plan.name, float_weight, start.to(float_weight.device))


def _view(plan: WeightPlan, parameter: Tensor) -> Tensor:
    """The weight [out, in] of a parameter."""
    return oriented(plan, plan.slice.part(parameter))


def _trained(weight: SolvedWeight, qtensor: Any) -> SolvedWeight:
    record = weight.record
    if record is not None:  # its error was that of the solver's codes
        record = replace(record, method=f"{record.method}, trained", output_error=None, rtn_error=None)
    return replace(weight, qtensor=qtensor, record=record)
