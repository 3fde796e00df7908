"""Modules with quantized weights that replace the layers of an eager network."""

from tersor.network.quantized.cell import QuantizedCell
from tersor.network.quantized.layers import Quantized, QuantizedEmbedding, QuantizedLinear, WeightOnly
from tersor.network.quantized.recurrent import QuantizedRecurrent
from tersor.network.quantized.weight import QuantizedWeight

__all__ = [
    "Quantized",
    "QuantizedCell",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedRecurrent",
    "QuantizedWeight",
    "WeightOnly",
]
