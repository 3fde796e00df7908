"""BatchNorm folded into the layer before it, as differentiable functions of the original tensors.

``W ← W·γ/σ`` and ``b ← (b − μ)·γ/σ + β``, computed in float64, so that folding changes the output by rounding only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import TaskError

DEAD = 2.0**-100
"""Below this |γ/σ| a channel is dead: its folded weights are zero."""


@dataclass(frozen=True, eq=False)
class Folded:
    """What was folded into a layer: the names of the original tensors, None where there is none.

    Args:
        weight, bias: of the layer; ``gamma``, ``beta``, ``mean``, ``variance``: of the BatchNorm.
        groups: of a transposed convolution, whose outputs are dimension 1; None for other layers.
        path: the dotted name of the BatchNorm.
        results: the folded weight and bias, by which a later rewrite of them is recognized.
    """

    weight: str
    bias: str | None
    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    eps: float
    momentum: float
    groups: int | None
    path: str
    results: tuple[Tensor, Tensor]

    @property
    def names(self) -> tuple[str | None, ...]:
        """Of the tensors."""
        return self.weight, self.bias, self.gamma, self.beta, self.mean, self.variance


def fold_factor(gamma: Tensor | None, variance: Tensor, eps: float) -> Tensor:
    """γ/σ of every channel, float64."""
    return (1.0 if gamma is None else gamma.double()) / torch.sqrt(variance.double() + eps)


def folded_weight(
    weight: Tensor, gamma: Tensor | None, variance: Tensor, eps: float, groups: int | None
) -> Tensor:
    """The weight times γ/σ of its output."""
    return _times(weight.double(), fold_factor(gamma, variance, eps), groups).to(weight.dtype)


def folded_bias(
    bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """The bias with mean and offset of the BatchNorm, in the dtype of the mean."""
    before = -mean.double() if bias is None else bias.double() - mean.double()
    after = before * fold_factor(gamma, variance, eps)
    return (after if beta is None else after + beta.double()).to(mean.dtype)


def unfolded(
    weight: Tensor, gamma: Tensor | None, variance: Tensor, eps: float, groups: int | None
) -> Tensor:
    """A folded weight divided by γ/σ: what a BatchNorm, instead of the folded bias, may follow."""
    factor = fold_factor(gamma, variance, eps)
    safe = torch.where(factor.abs() < DEAD, DEAD, factor)
    return _times(weight.double(), 1 / safe, groups).to(weight.dtype)


def scale_factor(gamma: Tensor | None, variance: Tensor, eps: float, ndim: int) -> Tensor:
    """|γ/σ| in the shape of scales per output (dimension 0), float32: by it a scale of the original weight becomes one
    of the folded weight."""
    factor = fold_factor(gamma, variance, eps).abs().clamp(min=DEAD)
    return factor.float().reshape(-1, *[1] * (ndim - 1))


def oriented(weight: Tensor, gamma: Tensor | None) -> Tensor:
    """The weight with the signs of γ: an asymmetric grid is not mirrored by a negative one."""
    if gamma is None:
        return weight
    sign = torch.where(gamma.detach() < 0, -1.0, 1.0).to(weight.dtype)
    return weight * sign.reshape(-1, *[1] * (weight.ndim - 1))


def batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    momentum: float,
    eps: float,
    name: str,
) -> Tensor:
    """BatchNorm by the statistics of the batch; running statistics are updated in place.

    Raises:
        TaskError: a batch with one value for each channel, which has no variance.
    """
    if x.numel() == x.shape[1]:
        raise TaskError(
            f"{name}: BatchNorm cannot train on a batch of one, with one value for each channel: let train() yield "
            "batches of at least two samples, or freeze BatchNorm (`freeze_batchnorm: 0`)"
        )
    return torch.batch_norm(x, gamma, beta, mean, variance, True, momentum, eps, False)


def cumulative_batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
    eps: float,
    name: str,
) -> Tensor:
    """BatchNorm with ``momentum=None``: its running statistics are the mean over all ``count`` batches so far."""
    count.add_(1)
    return batch_norm(x, gamma, beta, mean, variance, 1 / float(count), eps, name)


def _times(weight: Tensor, factor: Tensor, groups: int | None) -> Tensor:
    if groups is None:
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return (split * factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
