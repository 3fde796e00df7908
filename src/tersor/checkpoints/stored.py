"""The parts of a weight as a file stores them, assembled into a QTensor."""

import torch
from torch import Tensor

from tersor.errors import CheckpointError, TersorError
from tersor.numerics import FORMATS, Granularity, QTensor, QuantSpec


def assemble(name: str, codes: Tensor, scale: Tensor, zero_point: Tensor, block: int, bits: int) -> QTensor:
    """The weight ``name`` from a file that states shapes and bits but no spec.

    Args:
        codes: in the dtype of their format.
        scale, zero_point: float32, in the shape that ``numerics.expand`` describes.
        block: the number of neighbours that share a scale; 0 if none do.

    Returns:
        The weight, in the first format and granularity that fit these parts: ternary codes become int2, and a
        matrix with one scale per row becomes per channel.

    Raises:
        CheckpointError: no format or granularity fits, or a value is outside it; the message names the weight.

    >>> q = assemble("fc", torch.tensor([[3, -4]], dtype=torch.int8), torch.ones(1, 1), torch.zeros(1, 1), 0, 4)
    >>> str(q.spec)
    'int4 per tensor symmetric'
    """
    formats = [f for f in FORMATS.values() if f.dtype == codes.dtype and f.bits == bits]
    granularities = [g for g in _granularities(codes.ndim, block) if _fits(g, scale, codes)]
    if not formats or not granularities:
        raise CheckpointError(
            f"{name}: no format has codes in {codes.dtype} of {bits} bits with scales of shape {tuple(scale.shape)} "
            f"over {tuple(codes.shape)}: the file is damaged, save it again"
        )
    symmetric = formats[0].kind != "int" or not zero_point.any()
    try:
        return QTensor(codes, scale, zero_point, QuantSpec(formats[0], granularities[0], symmetric))
    except TersorError as error:
        raise CheckpointError(f"{name}: {error}; the file is damaged, save it again") from error


def _granularities(dimensions: int, block: int) -> list[Granularity]:
    axes = [Granularity.channel(axis) for axis in range(dimensions)]
    blocked = [Granularity.group(block), Granularity.filters(block)] if block else []
    return [Granularity.tensor(), *blocked, *axes, Granularity.token()]


def _fits(granularity: Granularity, scale: Tensor, codes: Tensor) -> bool:
    if granularity.kind == "group" and codes.ndim < 2:
        return False
    shape = granularity.scale_shape(codes.shape)
    return scale.shape == torch.Size(shape) or (granularity.kind == "tensor" and scale.ndim == 0)
