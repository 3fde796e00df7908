"""Recurrent layers and cells that train with their quantization.

Weights, and the input of the first layer, are quantized as in the deployed layer. That one also quantizes the state at
every step and what layers pass on to each other, by its engine's own scales if an engine computes it. In training these
stay in float, so that PyTorch's own recurrent kernels serve; cells follow it except for the state of a GRU.
"""

from typing import Any

from torch import nn

from tersor.network.trained.activations import at_run_time
from tersor.network.trained.reading import Quantizing
from tersor.numerics import QuantSpec


class TrainedLSTM(nn.LSTM):
    """``nn.LSTM`` with a quantizer of each weight, and of its input if ``activation`` is given."""

    activation: QuantSpec | None

    def forward(self, input: Any, hx: Any = None) -> Any:  # type: ignore[override]
        """As ``nn.LSTM``: padded or packed sequences."""
        return nn.LSTM.forward(_quantizing(self), at_run_time(input, self.activation), hx)


class TrainedGRU(nn.GRU):
    """``nn.GRU`` with a quantizer of each weight, and of its input if ``activation`` is given."""

    activation: QuantSpec | None

    def forward(self, input: Any, hx: Any = None) -> Any:  # type: ignore[override]
        """As ``nn.GRU``: padded or packed sequences."""
        return nn.GRU.forward(_quantizing(self), at_run_time(input, self.activation), hx)


class TrainedRNN(nn.RNN):
    """``nn.RNN`` with a quantizer of each weight, and of its input if ``activation`` is given."""

    activation: QuantSpec | None

    def forward(self, input: Any, hx: Any = None) -> Any:  # type: ignore[override]
        """As ``nn.RNN``: padded or packed sequences."""
        return nn.RNN.forward(_quantizing(self), at_run_time(input, self.activation), hx)


class TrainedLSTMCell(nn.LSTMCell):
    """``nn.LSTMCell`` with a quantizer of each weight, and of its input and state if ``activation`` is given."""

    activation: QuantSpec | None

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As ``nn.LSTMCell``."""
        hx = None if hx is None else (at_run_time(hx[0], self.activation), hx[1])
        return nn.LSTMCell.forward(_quantizing(self), at_run_time(input, self.activation), hx)


class TrainedGRUCell(nn.GRUCell):
    """``nn.GRUCell`` with a quantizer of each weight, and of its input if ``activation`` is given."""

    activation: QuantSpec | None

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As ``nn.GRUCell``; the state stays in float, since the new one is mixed with it."""
        return nn.GRUCell.forward(_quantizing(self), at_run_time(input, self.activation), hx)


class TrainedRNNCell(nn.RNNCell):
    """``nn.RNNCell`` with a quantizer of each weight, and of its input and state if ``activation`` is given."""

    activation: QuantSpec | None

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As ``nn.RNNCell``."""
        hx = None if hx is None else at_run_time(hx, self.activation)
        return nn.RNNCell.forward(_quantizing(self), at_run_time(input, self.activation), hx)


def _quantizing(layer: nn.Module) -> Any:
    # Not the layer's type, but all that its forward reads.
    return Quantizing(layer)
