"""Learned scales: stored as logarithms relative to their start, positive whatever a step of training does."""

import math
from typing import Any

import torch
from torch import Tensor, nn

# Scales and their products with weights and codes stay far from what float32 cannot represent.
LEAST, MOST = 2.0**-100, 2.0**100
# A scale stays within 1000 times its start, up and down: those that help move by a factor of 2 at most.
SPAN = 10 * math.log(2)
# A scale below this share of its layer's median belongs to a channel that is as good as dead.
_DEAD = 1e-2
RATE = 0.1
"""How fast scales move under SGD, relative to the paper of LSQ. At 1, scales of short trainings turned out unstable."""


def learn_scale(module: nn.Module, start: Tensor) -> nn.Parameter:
    """The parameter of a positive scale: the logarithm of its ratio to the start, a buffer ``start_scale``.

    Its steps are relative, and a weight decay, which optimizers also apply to what they should not, pulls the scale to
    its start.
    """
    module.register_buffer("start_scale", start.detach().float().clone())
    return nn.Parameter(torch.zeros_like(start, dtype=torch.float32))


def learned_scale(module: Any, factor: Tensor | None = None, normalized: float | None = None) -> Tensor:
    """The scale of a module's ``log_scale`` and ``start_scale``.

    Args:
        factor: by which the scale of a folded weight is multiplied.
        normalized: instead of the derivative ``s``, ∂L/∂log s is this divided by ``s``, times ∂L/∂s. Under SGD, the
            relative step of the scale then is that of LSQ (arXiv 1902.08153), whose gradient it multiplies.

    >>> module = nn.Module()
    >>> module.log_scale = learn_scale(module, torch.tensor(0.5))
    >>> torch.autograd.grad(learned_scale(module), module.log_scale)[0].item()
    0.5
    >>> torch.autograd.grad(learned_scale(module, normalized=0.1), module.log_scale)[0].item()
    0.20000000298023224
    """
    scale = _Exponential.apply(module.log_scale, module.start_scale, normalized)
    return times(scale, factor)  # type: ignore[arg-type]


def times(scale: Tensor, factor: Tensor | None) -> Tensor:
    """The scale of a folded weight, at least the smallest normal number."""
    return scale if factor is None else (scale * factor).clamp(min=torch.finfo(torch.float32).tiny)


def share(x: Tensor, scales: int, high: float, is_weight: bool) -> float:
    """LSQ's 1/√(N·high), with the N values of one sample, or of one of the ``scales`` of a weight.

    N does not count the batch: the gradient of a mean over the batch does not depend on it either.
    """
    values = x.numel() / (scales if is_weight else max(1, *x.shape[:1]))
    return 1 / math.sqrt(max(1.0, values * high))


class _Exponential(torch.autograd.Function):
    """start·exp(log) within limits, whose gradient also returns from beyond them."""

    @staticmethod
    def forward(ctx: Any, log: Tensor, start: Tensor, normalized: float | None) -> Tensor:
        scale = log.float().clamp(-SPAN, SPAN).exp_().mul_(start).clamp_(LEAST, MOST)
        ctx.save_for_backward(scale)
        ctx.normalized = normalized
        return scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (scale,) = ctx.saved_tensors
        if ctx.normalized is None:
            return gradients[0] * scale, None, None
        # A channel of next to no weights would move in steps of the reciprocal of its scale.
        return gradients[0] * ctx.normalized / scale.clamp(min=_DEAD * scale.median()), None, None
