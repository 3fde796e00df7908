"""The direction of the outputs, for embeddings that are compared by their angle."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from tersor.training.losses.base import OutputLoss
from tersor.training.losses.shapes import width_last


@dataclass(frozen=True)
class Cosine(OutputLoss):
    """``1 − cos(s, t)`` of the vectors along the width, the mean over samples and positions.

    The length of a vector has no part in it. DistilBERT compares hidden states so (arXiv 1910.01108).

    Args:
        weight: the share of this loss; the task's own loss, if there is one, has the rest.

    >>> import torch
    >>> from tersor.training.losses import Outputs
    >>> float(Cosine()(Outputs(torch.tensor([[2.0, 0.0]])), Outputs(torch.tensor([[0.0, 1.0]]))))
    1.0
    """

    weight: Annotated[float, Interval(ge=0, le=1)] = 0.9
    name: ClassVar[str] = "cosine"

    def of(self, student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
        """The loss of one tensor; ``target`` is not read."""
        s, t = (width_last(x if x.ndim > 1 else x[:, None]) for x in (student, teacher))
        return (1 - F.cosine_similarity(s, t, dim=-1)).mean()
