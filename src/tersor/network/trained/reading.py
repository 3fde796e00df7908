"""The quantizers of a training layer, and the layer as its own class sees it while they are at work."""

from typing import Any

from torch import nn

from tersor.training.quantizers import Quantizer

_SUFFIX = "_quantizer"


def quantizers_of(layer: nn.Module) -> dict[str, Quantizer]:
    """The training quantizers of a layer by the names of the weights; empty for any other module."""
    found = {n: m for n, m in layer.named_children() if n.endswith(_SUFFIX) and isinstance(m, Quantizer)}
    return {name.removesuffix(_SUFFIX): module for name, module in found.items()}


def add_quantizer(layer: nn.Module, weight: str, quantizer: Quantizer) -> None:
    """Add the quantizer of a weight; ``weight_ih_l0`` gets ``weight_ih_l0_quantizer``."""
    layer.add_module(weight + _SUFFIX, quantizer)


class Quantizing:
    """A layer whose weights read as quantized, and all else as it is, for the ``forward`` of its own class.

    The parameters stay where they are, so what replaces them (FSDP2, PEFT, casts) is read at every call.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        layer = self._layer
        if name == "_flat_weights":  # what recurrent layers compute with
            return [getattr(self, weight) for weight in layer._flat_weights_names]  # type: ignore[union-attr]
        value = getattr(layer, name)
        quantizer = layer._modules.get(name + _SUFFIX)
        return value if quantizer is None else quantizer(value)
