"""Activations of the training layers: quantized at run time as the deployed layers do, with a gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from tersor.network.quantized.integer import row_codes, shifted_codes, wide_codes
from tersor.numerics import QuantSpec


def at_run_time(x: Any, spec: QuantSpec | None) -> Any:
    """The input of a layer on the grid that its deployed form would choose for each row, with gradient 1.

    Args:
        x: a tensor ``[..., features]``, or a PackedSequence.
        spec: int8, or symmetric int16, per token or tensor; None keeps the input in float.

    >>> from tersor.numerics import QuantSpec
    >>> x = torch.tensor([[0.0, 254.0, 127.3]], requires_grad=True)
    >>> y = at_run_time(x, QuantSpec("int8", "token", symmetric=False))
    >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
    ([[0.0, 254.0, 127.0]], [[1.0, 1.0, 1.0]])
    """
    if spec is None:
        return x
    if isinstance(x, PackedSequence):
        return PackedSequence(at_run_time(x.data, spec), *x[1:])
    if x.numel() == 0:
        return x
    return _Rows.apply(x, spec.format.bits, spec.symmetric, spec.granularity.kind == "tensor")


class _Rows(torch.autograd.Function):
    """The values of the codes of each row, or of all rows together; their ranges clip nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, symmetric: bool, shared: bool) -> Tensor:
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if bits == 16:
            high, low, scale = wide_codes(rows, shared)
            values = high.float().mul_(256.0).add_(low).mul_(scale)
        elif symmetric:
            codes, scale = row_codes(rows, shared)
            values = codes * scale
        else:
            codes, scale, shift = shifted_codes(rows, shared)
            values = codes.float().add_(shift).mul_(scale)
        return values.reshape(x.shape).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None, None, None
