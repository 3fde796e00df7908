"""LSTM, GRU and RNN cells with integer products of input and state."""

from collections.abc import Sequence

from torch import Tensor, nn

from tersor.network.quantized.direction import Direction, step
from tersor.network.quantized.kernel import State
from tersor.network.quantized.layers import Quantized
from tersor.network.quantized.weight import QuantizedWeight
from tersor.numerics import QuantSpec


class QuantizedCell(Quantized):
    """``nn.LSTMCell``, ``nn.GRUCell`` or ``nn.RNNCell``."""

    def __init__(
        self,
        mode: str,
        layer: nn.RNNCellBase,
        weights: Sequence[QuantizedWeight],
        biases: Sequence[Tensor],
        activation: QuantSpec | None,
    ) -> None:
        super().__init__()
        self.mode, self.activation = mode, activation
        self.input_size, self.hidden_size, self.bias = layer.input_size, layer.hidden_size, layer.bias
        self.nonlinearity = getattr(layer, "nonlinearity", "tanh")
        self.direction = Direction(weights, biases, activation)
        self.direction.pack()

    @property
    def weight_ih(self) -> Tensor:
        """The float weight of the input, computed when an operator reads it."""
        return self.direction.ih.read()

    @property
    def weight_hh(self) -> Tensor:
        """The float weight of the state, computed when an operator reads it."""
        return self.direction.hh.read()

    @property
    def bias_ih(self) -> Tensor | None:
        """The bias of the input."""
        return self.direction.bias_ih

    @property
    def bias_hh(self) -> Tensor | None:
        """The bias of the state."""
        return self.direction.bias_hh

    def forward(self, input: Tensor, hx: Tensor | State | None = None) -> Tensor | State:
        """``[batch, in]`` or ``[in]`` and a state → the new state."""
        single = input.ndim == 1
        x = (input.unsqueeze(0) if single else input).float()
        count = 2 if self.mode == "LSTM" else 1
        if hx is None:
            state = tuple(x.new_zeros(x.shape[0], self.hidden_size) for _ in range(count))
        else:
            parts = hx if isinstance(hx, tuple) else (hx,)
            state = tuple((h.unsqueeze(0) if single else h).float() for h in parts)
        by_input, by_state, _ = self.direction.products()
        new = step(self.mode, by_input(x), by_state(state[0]), state)
        new = tuple((s.squeeze(0) if single else s).to(input.dtype) for s in new)
        return new if self.mode == "LSTM" else new[0]

    def extra_repr(self) -> str:
        return f"{self.mode} cell, {self.input_size}, {self.hidden_size}, activations {self.activation or 'in float'}"
