"""Learned step size: the scale is trained with the weights."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from torch import Tensor, nn

from tersor.training.quantizers.base import Quantizer, Start
from tersor.training.quantizers.scales import RATE, learn_scale, learned_scale, share


@dataclass(frozen=True)
class Lsq:
    """The scale is learned: ∂y/∂s is ``round(x/s) − x/s`` inside the range and the clipped code outside.

    Esser et al., arXiv 1902.08153. The scale is stored as its logarithm, so it stays positive and moves in relative
    steps. Its gradient is ``rate / √(N·high) / s`` times ∂L/∂s, with N values for each scale, without the batch:
    under SGD with the learning rate of the weights, the scale moves ``rate`` times as fast, relatively, as they do in
    the paper; under Adam the factor cancels.

    Args:
        rate: of the scale under SGD, relative to the paper's.

    >>> import torch
    >>> from tersor.numerics import QuantSpec
    >>> quantizer = Lsq()(Start("x", QuantSpec("uint4"), torch.tensor(0.5), torch.tensor(0.0)))
    >>> quantizer(torch.tensor([0.7, 1.0, 99.0])).tolist()
    [0.5, 1.0, 7.5]
    >>> sorted(quantizer.state_dict())
    ['codes_range', 'log_scale', 'start_scale', 'zero_point']
    """

    rate: Annotated[float, Gt(0)] = RATE
    kinds: ClassVar[frozenset[str]] = frozenset({"int", "ternary"})
    roles: ClassVar[frozenset[str]] = frozenset({"weight", "activation"})

    def __call__(self, start: Start) -> Quantizer:
        return LearnedStep(start, self.rate)


class LearnedStep(Quantizer):
    """A quantizer with a learned scale and a constant zero point."""

    zero_point: Tensor

    def __init__(self, start: Start, rate: float) -> None:
        super().__init__(start)
        self.rate = rate
        self.log_scale: nn.Parameter = learn_scale(self, start.scale)
        self.register_buffer("zero_point", start.zero_point.detach().clone())

    def grid(self, x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The learned scale, whose gradient is normalized, and the zero point of the start."""
        normalized = self.rate * share(x, self.log_scale.numel(), self.spec.high, self.is_weight)
        return learned_scale(self, factor, normalized), self.zero_point
