"""Modules that stand in an eager network for its layers, with weights held as codes."""

from tersor.network.quantized.layers import Quantized, QuantizedEmbedding, QuantizedLinear, WeightOnly
from tersor.network.quantized.recurrent import QuantizedCell, QuantizedRecurrent
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
