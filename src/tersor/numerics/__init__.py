"""Arithmetic only: number formats, scales, codes, packing and fake quantization, independent of any model."""

from tersor.numerics.fakequant import fake_quantize
from tersor.numerics.finite import all_finite, has_nan
from tersor.numerics.formats import FORMATS, NumberFormat
from tersor.numerics.packing import pack, packed_bytes, unpack
from tersor.numerics.qtensor import QTensor, quantize, quantize_tensor
from tersor.numerics.ranges import expand, qparams, reduce_range
from tersor.numerics.spec import Granularity, QuantSpec

__all__ = [
    "FORMATS",
    "Granularity",
    "NumberFormat",
    "QTensor",
    "QuantSpec",
    "all_finite",
    "expand",
    "fake_quantize",
    "has_nan",
    "pack",
    "packed_bytes",
    "qparams",
    "quantize",
    "quantize_tensor",
    "reduce_range",
    "unpack",
]
