"""Hints: the student's features are those of the teacher, up to a learned projection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from tersor.training.losses.base import FeatureLoss, Layers
from tersor.training.losses.shapes import pooled, positions_differ, projection, widths_differ


@dataclass(frozen=True)
class Hints(FeatureLoss):
    """FitNets (arXiv 1412.6550): ``mean (r(s) − t)²`` of each pair of layers, added up.

    ``r`` is a linear map from the student's width to the teacher's, trained with the student, where the widths differ.
    Pictures of different sizes are averaged to the smaller one.

    Args:
        layers: the pairs, see `tersor.training.losses.layers`.
        project: make ``r`` for other widths; without it such pairs are refused.
        weight: the factor of the loss.

    >>> import torch
    >>> from tersor.training.losses import Outputs
    >>> s, t = (Outputs(features={"stage": torch.full((2, 3, 4, 4), value)}) for value in (1.0, 3.0))
    >>> float(Hints()(s, t)), Hints().projection([2, 3, 8, 8], [2, 5, 4, 4])
    (4.0, Conv2d(3, 5, kernel_size=(1, 1), stride=(1, 1), bias=False))
    """

    layers: Layers = "auto"
    project: bool = True
    weight: Annotated[float, Ge(0)] = 10.0
    name: ClassVar[str] = "hints"

    def projection(self, student: Sequence[int], teacher: Sequence[int]) -> nn.Module | None:
        """The map ``r`` for features of these shapes, or None."""
        return projection(student, teacher) if self.project else None

    def refusal(self, student: Sequence[int], teacher: Sequence[int]) -> str:
        """Features must be of one kind and, behind the projection, one width."""
        return positions_differ(student, teacher) or widths_differ(student, teacher)

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair."""
        return F.mse_loss(*pooled(student, teacher))
