"""Attention transfer: the student looks where the teacher looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from tersor.training.losses.base import FeatureLoss, Layers
from tersor.training.losses.shapes import pooled, positions_differ, width_last


@dataclass(frozen=True)
class AttentionTransfer(FeatureLoss):
    """AT (arXiv 1612.03928): ``½ · mean (Q(s) / ‖Q(s)‖ − Q(t) / ‖Q(t)‖)²`` of each pair of layers, added up.

    ``Q`` of a position is ``Σ |a|^p`` over its width; ‖Q‖ runs over a sample's positions, the mean over samples and
    positions. Widths need not be equal; pictures of different sizes are averaged to the smaller one.

    Args:
        layers: the pairs, see `tersor.training.losses.layers`.
        power: p.
        weight: the factor β of the paper.

    >>> import torch
    >>> from tersor.training.losses import Outputs
    >>> s, t = (Outputs(features={"stage": x * torch.ones(2, c, 4, 4)}) for c, x in ((3, 1.0), (8, -2.0)))
    >>> float(AttentionTransfer()(s, t))  # both look everywhere alike
    0.0
    """

    layers: Layers = "auto"
    power: Annotated[float, Ge(1)] = 2.0
    weight: Annotated[float, Ge(0)] = 1000.0
    name: ClassVar[str] = "attention-transfer"

    def refusal(self, student: Sequence[int], teacher: Sequence[int]) -> str:
        """Features must have positions."""
        if len(student) < 3:
            return "features without positions have no map of attention: name layers before they are pooled"
        return positions_differ(student, teacher)

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair."""
        maps = (width_last(x).abs().pow(self.power).sum(-1).flatten(1) for x in pooled(student, teacher))
        s, t = (F.normalize(m, dim=1) for m in maps)
        return F.mse_loss(s, t) / 2
