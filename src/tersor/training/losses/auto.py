"""The loss of outputs that fits them: scores of classes as distributions, everything else as values."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt, Interval
from torch import Tensor

from tersor.training.losses.base import OutputLoss, Outputs, floats, named_logits
from tersor.training.losses.logits import Logits
from tersor.training.losses.mse import MeanSquared
from tersor.training.losses.shapes import no_classes, width_last


@dataclass(frozen=True)
class Auto(OutputLoss):
    """``logits`` where something says that the outputs are scores of classes, else ``mse``.

    What says so is their name, ``logits``, or labels: integers, one for each row of scores. A shape does not: boxes and
    embeddings also have several columns. Without such evidence ``mse`` is right for all, for it determines the whole
    output, and ``logits`` is not: it leaves the common offset of the columns free.

    Args:
        temperature: of ``logits``.
        weight: the share of this loss; the task's own loss, if there is one, has the rest.

    >>> import torch
    >>> scores = torch.zeros(2, 3)
    >>> Auto().chosen(scores, None).name, Auto().chosen(scores, torch.tensor([0, 2])).name
    ('mse', 'logits')
    >>> Auto().chosen({"logits": scores}, None).name
    'logits'
    """

    temperature: Annotated[float, Gt(0)] = 4.0
    weight: Annotated[float, Interval(ge=0, le=1)] = 0.9
    name: ClassVar[str] = "auto"

    def __call__(self, student: Outputs, teacher: Outputs, target: Tensor | None = None) -> Tensor:
        """The loss that is chosen; raises its errors."""
        self.check(student, teacher)
        return self.chosen(teacher.output, target)(student, teacher, target)

    def chosen(self, output: object, target: Tensor | None) -> OutputLoss:
        """The loss for that output of the teacher."""
        tensors = floats(output)
        classes = bool(tensors) and not any(no_classes(t.shape) for t in tensors)
        if classes and (named_logits(output) is not None or (len(tensors) == 1 and _labelled(tensors[0], target))):
            return Logits(self.temperature, self.weight)
        return MeanSquared(weight=self.weight)


def _labelled(scores: Tensor, target: Tensor | None) -> bool:
    """Whether the target has one integer for each row of scores."""
    return target is not None and not target.is_floating_point() and target.shape == width_last(scores).shape[:-1]
