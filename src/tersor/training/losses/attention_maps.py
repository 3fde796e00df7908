"""Attention probabilities of Transformers, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from tersor.training.losses.base import FeatureLoss, Layers


@dataclass(frozen=True)
class AttentionMaps(FeatureLoss):
    """MobileBERT's loss of attention (arXiv 2004.02984): ``mean KL(a_t ‖ a_s)`` of each pair of layers, added up.

    ``a`` [batch, heads, queries, keys] are the probabilities of the keys, and the mean runs over all queries. The
    distance ``mse`` is ``mean (a_s − a_t)²``, as TinyBERT has it for the scores before the softmax (arXiv 1909.10351).
    A layer must return its probabilities: in transformers with ``attn_implementation="eager"``. There they have passed
    the layer's dropout, which is best set to 0.

    Args:
        layers: the pairs, see `tersor.training.losses.layers`.
        distance: ``kl`` or ``mse``.
        heads: compare ``each`` head with its counterpart, or their ``mean``, for other numbers of heads.
        weight: the factor of the loss.

    >>> from tersor.training.losses import Outputs
    >>> s, t = (Outputs(features={"block": torch.tensor([[[row]]])}) for row in ([0.5, 0.5], [1.0, 0.0]))
    >>> round(float(AttentionMaps()(s, t)), 4), float(AttentionMaps(distance="mse")(s, t))
    (0.6931, 0.25)
    """

    layers: Layers = "auto"
    distance: Literal["kl", "mse"] = "kl"
    heads: Literal["each", "mean"] = "each"
    weight: Annotated[float, Ge(0)] = 1.0
    name: ClassVar[str] = "attention-maps"
    reads: ClassVar[Literal["features", "attention"]] = "attention"

    def refusal(self, student: Sequence[int], teacher: Sequence[int]) -> str:
        """Maps must have the same lengths, and the same heads unless these are averaged."""
        if len(student) != 4 or student[2:] != teacher[2:]:
            return "maps of attention are [batch, heads, queries, keys], with equal queries and keys in both networks"
        if student[1] != teacher[1] and self.heads == "each":
            return "their numbers of heads differ: set `heads: mean`"
        return ""

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one pair."""
        if self.heads == "mean":
            student, teacher = student.mean(1), teacher.mean(1)
        if self.distance == "mse":
            return F.mse_loss(student, teacher)
        least = torch.finfo(student.dtype).tiny  # a masked key has probability 0 in both
        return (torch.xlogy(teacher, teacher) - teacher * student.clamp(min=least).log()).sum(-1).mean()
