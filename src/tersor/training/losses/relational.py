"""Relational distillation: distances and angles between samples."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from tersor.training.losses.base import FeatureLoss, Layers


@dataclass(frozen=True)
class Relational(FeatureLoss):
    """RKD (arXiv 1904.05068): ``λ_d · mean h(d(s), d(t)) + λ_a · mean h(a(s), a(t))`` of each pair of layers, added up.

    ``d`` is the distance of two samples' features, divided by its mean over the pairs of the batch; ``a`` is the cosine
    of the angle that two samples form at a third one; ``h`` is the Huber loss. The means run over the ordered pairs and
    triples of different samples; triples with equal features have no angle. Batches of fewer than three samples have no
    relations that could differ, and a loss of 0. Shapes need not be equal. Memory: batch³ values.

    Args:
        layers: the pairs, see `tersor.training.losses.layers`.
        distance: λ_d.
        angle: λ_a.
        weight: the factor of the whole.

    >>> from tersor.training.losses import Outputs
    >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> turned = torch.tensor([[0.0, 0.0], [0.0, 3.0], [-6.0, 0.0]])
    >>> s, t = (Outputs(features={"stage": x}) for x in (points, turned))
    >>> round(float(Relational()(s, t)), 5)  # a turned and scaled copy
    0.0
    """

    layers: Layers = "auto"
    distance: Annotated[float, Ge(0)] = 25.0
    angle: Annotated[float, Ge(0)] = 50.0
    weight: Annotated[float, Ge(0)] = 1.0
    name: ClassVar[str] = "relational"

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair."""
        if len(student) < 3:
            return student.sum() * 0
        s, t = _relations(student.flatten(1)), _relations(teacher.flatten(1))
        total = self.distance * F.smooth_l1_loss(s.distances(), t.distances())
        if self.angle:
            exist = s.triples() & t.triples()
            a, b = s.cosines()[exist], t.cosines()[exist]
            total = total + self.angle * F.smooth_l1_loss(a, b, reduction="sum") / exist.sum().clamp(min=1)
        return total


@dataclass(frozen=True, eq=False)
class _Relations:
    """The geometry of a batch.

    Args:
        gram: [batch, batch], inner products of the features without their mean.
        length: [batch, batch], distances; 0 for equal samples.
    """

    gram: Tensor
    length: Tensor

    def distances(self) -> Tensor:
        """The distances of different samples, over their mean."""
        values = self.length[~torch.eye(len(self.length), dtype=torch.bool, device=self.length.device)]
        return values / values.mean().clamp(min=torch.finfo(values.dtype).tiny)

    def triples(self) -> Tensor:
        """bool [vertex, i, k]: whether i and k are different samples that lie elsewhere than the vertex."""
        apart = self.length > 0
        return apart[:, :, None] & apart[:, None] & ~torch.eye(len(apart), dtype=torch.bool, device=apart.device)

    def cosines(self) -> Tensor:
        """[vertex, i, k]: the cosine of the angle that i and k form at the vertex; 0 where there is none."""
        gram = self.gram
        products = gram - gram[:, :, None] - gram[:, None] + gram.diagonal()[:, None, None]
        inverse = torch.where(self.length > 0, self.length, 1).reciprocal()
        return products * inverse[:, :, None] * inverse[:, None]


def _relations(x: Tensor) -> _Relations:
    x = x - x.mean(0)  # smaller products lose fewer digits
    gram = x @ x.t()
    powers = gram.diagonal()[:, None] + gram.diagonal()
    squares = powers - 2 * gram
    apart = squares > 64 * torch.finfo(x.dtype).eps * powers  # less is the rounding of equal samples
    return _Relations(gram, torch.where(apart, squares, 1).sqrt() * apart)
