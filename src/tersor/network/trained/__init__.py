"""Layers of eager models that train with their quantization: the layer's own class, with quantizers beside weights."""

import copy
from collections.abc import Mapping

from torch import nn

from tersor.network.trained.layers import (
    TrainedConv1d,
    TrainedConv2d,
    TrainedConv3d,
    TrainedConvTranspose1d,
    TrainedConvTranspose2d,
    TrainedConvTranspose3d,
    TrainedEmbedding,
    TrainedLinear,
)
from tersor.network.trained.reading import add_quantizer, quantizers_of
from tersor.network.trained.recurrent import (
    TrainedGRU,
    TrainedGRUCell,
    TrainedLSTM,
    TrainedLSTMCell,
    TrainedRNN,
    TrainedRNNCell,
)
from tersor.numerics import QuantSpec
from tersor.training.quantizers import Quantizer

__all__ = ["TRAINED", "TrainedLinear", "plain", "quantizers_of", "train_with"]

TRAINED: dict[str, type[nn.Module]] = {
    "linear": TrainedLinear,
    "embedding": TrainedEmbedding,
    "lstm": TrainedLSTM,
    "gru": TrainedGRU,
    "rnn": TrainedRNN,
    "lstm_cell": TrainedLSTMCell,
    "gru_cell": TrainedGRUCell,
    "rnn_cell": TrainedRNNCell,
    "conv1d": TrainedConv1d,
    "conv2d": TrainedConv2d,
    "conv3d": TrainedConv3d,
    "conv_transpose1d": TrainedConvTranspose1d,
    "conv_transpose2d": TrainedConvTranspose2d,
    "conv_transpose3d": TrainedConvTranspose3d,
}
"""The training class of every operator type; each inherits from the class that it trains."""


def train_with(
    layer: nn.Module, op: str, quantizers: Mapping[str, Quantizer], activation: QuantSpec | None, transposed: bool
) -> None:
    """Make a layer train with its quantization, in place: who holds it keeps it, with its parameters and hooks.

    Args:
        op: its operator type.
        quantizers: by the names of the weights.
        activation: how its input is quantized at run time; None if it stays float.
        transposed: whether it is GPT-2's Conv1D.
    """
    kind = TRAINED[op]
    if transposed:
        from tersor.network.trained.conv1d import TrainedConv1D as kind
    layer.__class__ = kind
    layer.activation = activation  # type: ignore[assignment]
    for name, quantizer in quantizers.items():
        add_quantizer(layer, name, quantizer)


def plain(layer: nn.Module, op: str) -> nn.Module:
    """A training layer as the class that it trains, without its quantizers; parameters are shared."""
    made = copy.copy(layer)
    made.__class__ = TRAINED[op].__base__  # type: ignore[assignment]
    made._modules = {}
    return made
