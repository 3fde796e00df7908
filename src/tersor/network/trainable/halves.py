"""Weights stored in half precision, trained in full."""

from typing import Any

import torch
from torch import Tensor


def stored_as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` rounded to ``dtype``, in its own; the gradient passes unrounded.

    >>> x = torch.tensor([1.0, 1.0 + 2**-12], requires_grad=True)
    >>> y = stored_as(x, torch.float16)
    >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
    ([1.0, 1.0], [1.0, 1.0])
    """
    return _Stored.apply(x, dtype)  # type: ignore[return-value]


class _Stored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None
