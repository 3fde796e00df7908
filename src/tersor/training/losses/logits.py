"""The teacher's softened distribution over the classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from annotated_types import Gt, Interval
from torch import Tensor

from tersor.training.losses.base import OutputLoss
from tersor.training.losses.shapes import no_classes, width_last


@dataclass(frozen=True)
class Logits(OutputLoss):
    """Hinton's distillation: ``T² · KL(softmax(t / T) ‖ softmax(s / T))``, the mean over samples and positions.

    The factor T² keeps the gradient's size independent of the temperature (arXiv 1503.02531).

    Args:
        temperature: T; higher values show more of the classes that the teacher thinks unlikely.
        weight: the share of this loss; the task's own loss, if there is one, has the rest.

    Outputs are scores before a softmax: [batch, classes], [batch, length, classes] or [batch, classes, height, width].

    >>> import torch
    >>> from tersor.training.losses import Outputs
    >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    >>> p = torch.softmax(t / 4, -1)
    >>> bool(torch.isclose(Logits()(Outputs(s), Outputs(t)), 16 * (p * (p / 0.5).log()).sum()))
    True
    """

    temperature: Annotated[float, Gt(0)] = 4.0
    weight: Annotated[float, Interval(ge=0, le=1)] = 0.9
    name: ClassVar[str] = "logits"

    def refusal(self, shape: Sequence[int]) -> str:
        """Outputs need at least two classes."""
        return no_classes(shape)

    def of(self, student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
        """The loss of one tensor; ``target`` is not read."""
        s, t = (F.log_softmax(width_last(x).flatten(0, -2) / self.temperature, -1) for x in (student, teacher))
        return self.temperature**2 * F.kl_div(s, t, log_target=True, reduction="batchmean")
