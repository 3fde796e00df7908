"""Decoupled knowledge distillation: how sure the teacher is, and what else it thinks likely."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from tersor.errors import TaskError
from tersor.training.losses.base import OutputLoss
from tersor.training.losses.shapes import no_classes, width_last


@dataclass(frozen=True)
class Decoupled(OutputLoss):
    """DKD (arXiv 2203.08679): ``T² · (α · KL(b_t ‖ b_s) + β · KL(p̂_t ‖ p̂_s))``, the mean over samples and positions.

    ``b`` is the probability of the label's class and of all others together, ``p̂`` the distribution over the others.
    ``logits`` is the case ``α = 1`` and ``β = 1 − b_t`` of each sample. It is added to the task's own loss.

    Args:
        alpha: α, the factor of the target class.
        beta: β, the factor of the other classes: 8 in the paper for most pairs, 2 for ResNet-56 → ResNet-20.
        temperature: T.
        weight: the factor of the whole.

    >>> from tersor.training.losses import Outputs
    >>> s, t = Outputs(torch.tensor([[2.0, 1.0, 0.0]])), Outputs(torch.tensor([[2.0, 0.0, 1.0]]))
    >>> loss = Decoupled(alpha=5.0)
    >>> float(loss(s, t, torch.tensor([0]))) == float(Decoupled(alpha=0.0)(s, t, torch.tensor([0])))  # equally sure
    True
    >>> loss(s, t, torch.tensor([3]))
    Traceback (most recent call last):
    tersor.errors.TaskError: dkd: the label 3 is out of range: the networks have 3 classes, 0 to 2
    """

    alpha: Annotated[float, Ge(0)] = 1.0
    beta: Annotated[float, Ge(0)] = 8.0
    temperature: Annotated[float, Gt(0)] = 4.0
    weight: Annotated[float, Ge(0)] = 1.0
    name: ClassVar[str] = "dkd"
    share: ClassVar[bool] = False

    def refusal(self, shape: Sequence[int]) -> str:
        """Outputs need at least two classes."""
        return no_classes(shape)

    def of(self, student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
        """The loss of one tensor.

        Raises:
            TaskError: labels that are missing, of another shape, or out of range.
        """
        student, teacher = width_last(student), width_last(teacher)
        labels = _labels(target, student.shape)
        parts = zip(*(self._logs(x, labels) for x in (student, teacher)), strict=True)
        sure, others = (F.kl_div(s, t, log_target=True, reduction="batchmean") for s, t in parts)
        return self.temperature**2 * (self.alpha * sure + self.beta * others)

    def _logs(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of b, [rows, 2], and of p̂, [rows, classes], with 0 (no difference) for the label's class."""
        scores = scores.flatten(0, -2) / self.temperature
        others = scores.scatter(1, labels, float("-inf"))
        both = F.log_softmax(torch.hstack((scores.gather(1, labels), others.logsumexp(1, True))), 1)
        return both, F.log_softmax(others, 1).scatter(1, labels, 0.0)


def _labels(target: Tensor | None, shape: Sequence[int]) -> Tensor:
    """The labels, [rows, 1]."""
    *positions, classes = shape
    if target is None or target.is_floating_point() or [*target.shape] != positions:
        given = "none" if target is None else f"{target.dtype} {[*target.shape]}"
        raise TaskError(f"dkd needs labels, integers {positions}, and was given {given}: yield (inputs, labels)")
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= classes:
        raise TaskError(
            f"dkd: the label {low if low < 0 else high} is out of range: the networks have {classes} classes, 0 to "
            f"{classes - 1}"
        )
    return target.long().reshape(-1, 1)
