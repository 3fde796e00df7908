"""The plain outputs: what any two networks with equal outputs can be compared by."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor

from tersor.training.losses.base import OutputLoss


@dataclass(frozen=True)
class MeanSquared(OutputLoss):
    """The squared error of the outputs: ``Σ (s − t)² / Σ t²`` over the batch, or its mean if it is not relative.

    It fits regressions, embeddings and scores alike; of scores it is the limit of ``logits`` at high temperatures,
    up to their common offset (arXiv 1503.02531, section 2.1; compared in arXiv 2105.08919).

    Args:
        relative: divide by the teacher's power, so that the loss does not depend on the output's unit; a power of 0
            counts as 1.
        weight: the share of this loss; the task's own loss, if there is one, has the rest.

    >>> from tersor.training.losses import Outputs
    >>> s, t = Outputs(torch.tensor([[1.0], [2.0]])), Outputs(torch.tensor([[1.0], [3.0]]))
    >>> float(MeanSquared()(s, t)), float(MeanSquared(relative=False)(s, t))
    (0.1..., 0.5)
    """

    relative: bool = True
    weight: Annotated[float, Interval(ge=0, le=1)] = 0.9
    name: ClassVar[str] = "mse"

    def of(self, student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
        """The loss of one tensor; ``target`` is not read."""
        error, power = (student - teacher).square().mean(), teacher.square().mean()
        return error / torch.where(power > 0, power, 1) if self.relative else error
