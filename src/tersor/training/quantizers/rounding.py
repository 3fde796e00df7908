"""Rounding with gradients: the forward pass of the deployed nodes, and the gradients of its straight-through form."""

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.numerics.qtensor import sign, wide

# Elements of a piece: its few passes stay in the cache, which makes them twice as fast as over whole tensors; smaller
# pieces cost more calls than they save.
PIECE = 1 << 18


class RoundToGrid(torch.autograd.Function):
    """``round(clamp(x / s, low − z, high − z))·s`` with gradients for ``x``, ``s`` and ``z``.

    The gradients are those of the composition whose rounding passes its gradient on (arXiv 1308.3432): inside the
    range 1 for ``x`` and ``round(x/s) − x/s`` for ``s`` (LSQ, arXiv 1902.08153); outside 0 for ``x``, the clipped code
    for ``s``, and ``−s`` for ``z`` (LSQ+, arXiv 2004.09576).

    Args:
        scale, zero_point: float32, broadcastable to ``x``; zero points are whole.
        noise: uniform in [0, 1), of the shape of ``x``, to round stochastically; None: to nearest, ties to even.

    The result is kept for the backward pass, so it must not be changed in place.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, noise: Tensor | None
    ) -> Tensor:
        y = _on_grid(x, scale, zero_point, low, high, noise)
        # Rounded to a half, y is no longer a code times s: it is then computed again.
        ctx.save_for_backward(x, scale, zero_point, *((y, None) if y.dtype == x.dtype else (None, noise)))
        ctx.limits = low, high
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """With y = code·s, ∂L/∂s sums g·(code − x/s) inside and g·code outside: g·(y − x), or g·y, over s."""
        x, scale, zero_point, y, noise = ctx.saved_tensors
        low, high = ctx.limits
        if y is None:
            y = _on_grid(x, scale, zero_point, low, high, noise)
        # A gradient that is itself differentiated is made of operators that can be.
        if not _sliced(x, scale, zero_point) or torch.is_grad_enabled():
            return *_whole(ctx.needs_input_grad, gradients[0], x, y, scale, zero_point, (low, high)), None, None, None
        for_x, for_scale, for_zero = torch.empty_like(x), [], []
        zero, step = zero_point.item(), scale.item()
        ends = _beyond(low - zero, step, -math.inf), _beyond(high - zero, step, math.inf)
        for part, into, arrived, rounded in _pieces(x, for_x, gradients[0], y):
            exact, gradient = part.float(), arrived.float()
            passed = into if into.dtype == exact.dtype else torch.empty_like(exact)
            # The gradient where x is inside, else 0: the one operator that chooses by x in one pass.
            torch.ops.aten.hardtanh_backward.grad_input(gradient, exact, *ends, grad_input=passed)
            if passed is not into:
                into.copy_(passed)
            if ctx.needs_input_grad[1]:
                inside = torch.ops.aten.hardtanh_backward(exact, exact, *ends)
                for_scale.append(_dot(gradient, torch.sub(rounded, inside, out=inside)))
            if ctx.needs_input_grad[2]:
                for_zero.append((passed - gradient).sum() * scale)
        slope, offset = (torch.stack(parts).sum() if parts else None for parts in (for_scale, for_zero))
        return (
            for_x, None if slope is None else (slope / scale).reshape(scale.shape),
            None if offset is None else offset.reshape(zero_point.shape), None, None, None,
        )  # fmt: skip


def _whole(
    needed: Sequence[bool], gradient: Tensor, x: Tensor, y: Tensor, scale: Tensor, zero_point: Tensor,
    limits: tuple[int, int],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The three gradients of a small tensor, or one with several scales."""
    low, high = limits
    exact, arrived = wide(x), wide(gradient)
    steps = exact / scale
    inside = (steps >= low - zero_point) & (steps <= high - zero_point)
    passed = torch.where(inside, arrived, 0.0)
    for_scale = for_zero = None
    if needed[1]:
        error = torch.where(inside, y - exact, y)
        for_scale = (arrived * error).sum_to_size(scale.shape) / scale
    if needed[2]:
        for_zero = ((passed - arrived) * scale).sum_to_size(zero_point.shape)
    return passed.to(x.dtype), for_scale, for_zero


def _on_grid(
    x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, noise: Tensor | None
) -> Tensor:
    """``x`` on the grid, in at least float32."""
    if not _sliced(x, scale, zero_point):
        return _rounded(wide(x) / scale, noise).clamp_(low - zero_point, high - zero_point).mul_(scale)
    out, zero = torch.empty_like(x, dtype=torch.float32), zero_point.item()
    for part, into, drawn in _pieces(x, out, noise):
        torch.div(part.float(), scale, out=into)
        _rounded(into, drawn).clamp_(low - zero, high - zero).mul_(scale)
    return out


def _rounded(x: Tensor, noise: Tensor | None) -> Tensor:
    """``x`` rounded, in place: to nearest, or up with a probability equal to its fraction."""
    if noise is None:
        return x.round_()
    whole = x.floor()
    # Not floor(x + noise), since that sum is rounded itself.
    return x.copy_(whole.add_(noise < x.sub_(whole)))


def _sliced(x: Tensor, scale: Tensor, zero_point: Tensor) -> bool:
    """Whether one scale serves a large tensor on a CPU: a GPU would wait for a scale that Python reads."""
    shared = scale.numel() == 1 and zero_point.numel() == 1
    large = x.is_cpu and x.numel() > PIECE and x.dtype != torch.float64
    return shared and large and not torch.compiler.is_compiling()


def _beyond(limit: float, scale: float, side: float) -> float:
    """The float32 next to ``limit · scale`` towards ``side`` whose quotient by ``scale``, in float32, is beyond it."""
    # Beside 0 it is the first whose quotient is not rounded to 0.
    near = limit * scale if limit else math.copysign(scale * 2.0**-150, side)
    step, end, sign = np.float32(scale), np.float32(near), math.copysign(1, side)
    while sign * (end / step) > sign * limit:
        end = np.nextafter(end, np.float32(-side))
    while sign * (end / step) <= sign * limit:
        end = np.nextafter(end, np.float32(side))
    return float(end)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The sum of ``a·b``."""
    dense = a.is_contiguous() or (a.ndim == 4 and a.is_contiguous(memory_format=torch.channels_last))
    if dense and a.stride() == b.stride():
        return torch.dot(*(t.as_strided((t.numel(),), (1,)) for t in (a, b)))
    return (a * b).sum()


def _pieces(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """The tensors in slices of samples that fit the cache."""
    x = tensors[0]
    assert x is not None
    samples = max(1, PIECE * len(x) // x.numel())
    return zip(*(repeat(None) if t is None else t.split(samples) for t in tensors), strict=False)


class Round(torch.autograd.Function):
    """Round to nearest, ties to even, with gradient 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


class Stored(torch.autograd.Function):
    """A scale in the dtype in which it is stored, at least its smallest normal number, as float32, with gradient 1.

    >>> Stored.apply(torch.tensor([0.3333]), torch.bfloat16).item()
    0.333984375
    """

    @staticmethod
    def forward(ctx: Any, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return scale.to(dtype).clamp(min=torch.finfo(dtype).smallest_normal).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


class Signed(torch.autograd.Function):
    """``±s`` by the sign of ``x`` (0 counts as positive), with gradients for ``x`` and ``s``.

    The gradient for ``x`` is ``slope(x / s)``: by default 1 where |x| ≤ s (arXiv 1602.02830).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, slope: Any = None) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.slope = slope
        return sign(wide(x) / scale).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        gradient, exact = wide(gradients[0]), wide(x) / scale
        slope = exact.abs() <= 1 if ctx.slope is None else ctx.slope(exact)
        for_scale = None
        if ctx.needs_input_grad[1]:
            for_scale = (gradient * sign(exact)).sum_to_size(scale.shape)
        return (gradient * slope).to(x.dtype), for_scale, None
