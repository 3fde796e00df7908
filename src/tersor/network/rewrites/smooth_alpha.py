"""The error of quantized products for each smoothing strength, on sampled rows."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tersor.numerics import QuantSpec, fake_quantize, qparams, reduce_range

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_INPUT, _WEIGHT = QuantSpec("uint8", symmetric=False), QuantSpec("int8", "channel")


def products_error(
    rows: Float[Tensor, "rows columns"],
    weights: Sequence[Float[Tensor, "out columns"]],
    scale: Float[Tensor, " columns"],
) -> float:
    """The squared error of all products of ``rows / scale`` and ``weight · scale``, both in int8.

    The input has one range for all rows, each weight one range per output.
    """
    x = _fake_quantize(rows / scale, _INPUT)
    error = 0.0
    for weight in weights:
        products = x @ _fake_quantize(weight.float() * scale, _WEIGHT).T
        error += float((products - rows @ weight.float().T).square().sum(dtype=torch.float64))
    return error


def _fake_quantize(x: Tensor, spec: QuantSpec) -> Tensor:
    low, high = reduce_range(x, spec)
    return fake_quantize(x, *qparams(low, high, spec), spec)
