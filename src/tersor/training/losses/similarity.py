"""Similarity preserving distillation: samples that are alike to the teacher are alike to the student."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from tersor.training.losses.base import FeatureLoss, Layers


@dataclass(frozen=True)
class Similarity(FeatureLoss):
    """SP (arXiv 1907.09682): ``‖G(s) − G(t)‖² / batch²`` of each pair of layers, added up.

    ``G`` is the matrix of inner products between the features of the batch's samples, each row divided by its norm.
    Shapes need not be equal.

    Args:
        layers: the pairs, see `tersor.training.losses.layers`.
        weight: the factor γ of the paper.

    >>> import torch
    >>> from tersor.training.losses import Outputs
    >>> s, t = (Outputs(features={"stage": x}) for x in (torch.eye(2), torch.ones(2, 5)))
    >>> round(float(Similarity()(s, t)), 4)  # (1 − 1/√2)² and (1/√2)²: their mean
    0.2929
    """

    layers: Layers = "auto"
    weight: Annotated[float, Ge(0)] = 3000.0
    name: ClassVar[str] = "similarity"

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair."""
        s, t = (F.normalize(x.flatten(1) @ x.flatten(1).t(), dim=1) for x in (student, teacher))
        return F.mse_loss(s, t)
