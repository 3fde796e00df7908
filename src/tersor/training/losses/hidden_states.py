"""Hidden states of Transformers, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from tersor.training.losses.base import FeatureLoss, Layers
from tersor.training.losses.shapes import positions_differ, projection, widths_differ


@dataclass(frozen=True)
class HiddenStates(FeatureLoss):
    """TinyBERT's loss of hidden states (arXiv 1909.10351): ``mean (s · W − t)²`` of each pair of layers, added up.

    ``W`` is trained with the student where the widths differ. The distance ``cosine`` is DistilBERT's,
    ``mean (1 − cos(s · W, t))`` (arXiv 1910.01108): it is not dominated by the few dimensions of large values.

    Args:
        layers: the pairs, see `tersor.training.losses.layers`; of a network of fewer blocks, evenly spaced ones.
        distance: ``mse`` or ``cosine``.
        project: make W for other widths; without it such pairs are refused.
        weight: the factor of the loss.

    >>> import torch
    >>> from tersor.training.losses import Outputs
    >>> s, t = (Outputs(features={"block": torch.full((2, 7, 4), value)}) for value in (1.0, 3.0))
    >>> float(HiddenStates()(s, t)), float(HiddenStates(distance="cosine")(s, t))
    (4.0, 0.0)
    """

    layers: Layers = "auto"
    distance: Literal["mse", "cosine"] = "mse"
    project: bool = True
    weight: Annotated[float, Ge(0)] = 1.0
    name: ClassVar[str] = "hidden-states"

    def projection(self, student: Sequence[int], teacher: Sequence[int]) -> nn.Module | None:
        """The matrix ``W`` for features of these shapes, or None."""
        return projection(student, teacher) if self.project else None

    def refusal(self, student: Sequence[int], teacher: Sequence[int]) -> str:
        """Features must be sequences and, behind the projection, of one width."""
        if len(student) != 3:
            return "hidden states are [batch, length, width]: name such layers, or use hints"
        return positions_differ(student, teacher) or widths_differ(student, teacher)

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair."""
        if self.distance == "mse":
            return F.mse_loss(student, teacher)
        return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
