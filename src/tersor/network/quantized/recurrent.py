"""LSTM, GRU and RNN, and their cells, with integer products of input and state."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tersor.network.quantized.layers import Quantized
from tersor.network.quantized.weight import Product, QuantizedWeight
from tersor.numerics import QuantSpec

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
State = tuple[Tensor, ...]
# A size is a symbol where a program is exported, and a tensor where it is traced.
Size = int | torch.SymInt | Tensor
_NAME = re.compile(r"(weight|bias)_(ih|hh|hr)_l(\d+)(_reverse)?")


def step(mode: str, from_input: Tensor, from_state: Tensor, state: State) -> State:
    """One time step: gates ``[batch, gates · hidden]`` from the input and from the state → the new state."""
    if mode == "LSTM":
        i, f, g, o = from_input.add(from_state).chunk(4, 1)
        cell = torch.addcmul(i.sigmoid().mul_(g.tanh()), f.sigmoid(), state[1])
        return o.sigmoid().mul_(cell.tanh()), cell
    if mode == "GRU":
        hidden = state[0].shape[1]
        gates = (from_input[:, : 2 * hidden] + from_state[:, : 2 * hidden]).sigmoid_()
        reset, update = gates.chunk(2, 1)
        new = torch.addcmul(from_input[:, 2 * hidden :], reset, from_state[:, 2 * hidden :]).tanh_()
        return (torch.lerp(new, state[0], update),)
    total = from_input + from_state
    return (total.tanh_() if mode == "RNN_TANH" else total.relu_(),)


class _Direction(nn.Module):
    """One layer in one direction."""

    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(self, weights: Sequence[QuantizedWeight], biases: Sequence[Tensor], activation: QuantSpec | None):
        super().__init__()
        self.ih, self.hh = weights[:2]
        self.hr = weights[2] if len(weights) > 2 else None
        for name, bias in zip(("bias_ih", "bias_hh"), biases or (None, None), strict=True):
            value = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
            self.register_parameter(name, value)
        self.activation = activation
        if activation is not None:
            for weight in weights:
                weight.pack()

    def products(self) -> tuple[Product, Product, Product | None]:
        """The products with the input, the state and, if projected, the output."""
        projection = self.hr.product(self.activation) if self.hr is not None else None
        bias_ih, bias_hh = (None if b is None else b.float() for b in (self.bias_ih, self.bias_hh))
        by_input = self.ih.product(self.activation, bias_ih)
        return by_input, self.hh.product(self.activation, bias_hh), projection

    def tensor(self, kind: str, part: str) -> Tensor | None:
        """The weight or bias (``kind``) of the input, state or projection (``ih``, ``hh``, ``hr``), if there is one."""
        if kind == "bias":
            return getattr(self, f"bias_{part}", None)
        weight: QuantizedWeight | None = getattr(self, part)
        return None if weight is None else weight.read()

    def run(
        self, mode: str, data: Tensor, sizes: Sequence[Size], state: State, reverse: bool
    ) -> tuple[Tensor, State]:
        """Packed rows ``[sum(sizes), in]``, ``sizes[t]`` of them at time t → packed outputs and the last state."""
        by_input, by_state, project = self.products()
        gates = by_input(data)
        parts = list(enumerate(gates.split(list(sizes))))
        outputs: list[Tensor] = [gates] * len(parts)
        for t, gates_now in reversed(parts) if reverse else parts:
            count = sizes[t]
            active = tuple(s[:count] for s in state)
            new = step(mode, gates_now, by_state(active[0]), active)
            if project is not None:
                new = (project(new[0]), *new[1:])
            outputs[t] = new[0]
            full = count == state[0].shape[0]
            state = new if full else tuple(torch.cat([n, s[count:]]) for n, s in zip(new, state, strict=True))
        return torch.cat(outputs), state


class QuantizedRecurrent(Quantized):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` of any number of layers, directions, and projections.

    Takes and returns what the replaced module does: padded or packed sequences, with or without a batch dimension or an
    initial state. Answers in the dtype of its input, and for the names of its weights (``weight_hh_l0``).
    """

    def __init__(
        self,
        layer: nn.RNNBase,
        weights: Sequence[Sequence[QuantizedWeight]],
        biases: Sequence[Sequence[Tensor]],
        activation: QuantSpec | None,
    ) -> None:
        super().__init__()
        self.mode, self.activation = layer.mode, activation
        self.input_size, self.hidden_size, self.num_layers = layer.input_size, layer.hidden_size, layer.num_layers
        self.batch_first, self.bidirectional, self.proj_size = layer.batch_first, layer.bidirectional, layer.proj_size
        self.dropout, self.bias = layer.dropout, layer.bias
        self.nonlinearity = getattr(layer, "nonlinearity", "tanh")
        parts = zip(weights, biases, strict=True)
        self.directions = nn.ModuleList(_Direction(w, b, activation) for w, b in parts)

    def flatten_parameters(self) -> None:
        """No-op, for callers of ``nn.LSTM``."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights and biases of every layer and direction, as ``nn.LSTM`` lists them."""
        kinds = [("weight", "ih"), ("weight", "hh"), ("bias", "ih"), ("bias", "hh"), ("weight", "hr")]
        found = ([run.tensor(*k) for k in kinds] for run in self.directions)  # type: ignore[operator]
        return [[t for t in tensors if t is not None] for tensors in found]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            match = _NAME.fullmatch(name)
            count = 2 if match is not None and self.bidirectional else 1
            if match is None or (match[4] and count == 1) or int(match[3]) >= self.num_layers:
                raise
            found = self.directions[int(match[3]) * count + bool(match[4])].tensor(match[1], match[2])  # type: ignore[operator]
            if found is None:
                raise
            return found

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | State | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor | State]:
        """As ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``: (output, last state)."""
        dtype = input.data.dtype
        output, state = self._run(input, hx)
        last = tuple(s.to(dtype) for s in state)
        return output.to(dtype), last if self.mode == "LSTM" else last[0]

    def _run(
        self, input: Tensor | PackedSequence, hx: Tensor | State | None
    ) -> tuple[Tensor | PackedSequence, State]:
        if isinstance(input, PackedSequence):
            sizes = input.batch_sizes.tolist()
            state = self._permute(self._state(hx, sizes[0], input.data), input.sorted_indices)
            data, state = self._layers(input.data.float(), sizes, state)
            packed = PackedSequence(data, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
            return packed, self._permute(state, input.unsorted_indices)
        if input.ndim not in (2, 3):
            raise ValueError(f"{self.mode}: expected an input of 2 or 3 dimensions, got {tuple(input.shape)}")
        single = input.ndim == 2
        x = input.unsqueeze(1) if single else input.transpose(0, 1) if self.batch_first else input
        length, batch = x.shape[:2]
        if length == 0:
            raise ValueError(f"{self.mode}: expected a sequence length above 0, got {tuple(input.shape)}")
        if single and hx is not None:
            hx = tuple(h.unsqueeze(1) for h in hx) if isinstance(hx, tuple) else hx.unsqueeze(1)
        state = self._state(hx, batch, x)
        data, state = self._layers(x.reshape(length * batch, -1).float(), [batch] * length, state)
        output = data.reshape(length, batch, -1)
        if single:
            return output.squeeze(1), tuple(s.squeeze(1) for s in state)
        return output.transpose(0, 1) if self.batch_first else output, state

    def _layers(self, data: Tensor, sizes: Sequence[Size], state: State) -> tuple[Tensor, State]:
        count = 2 if self.bidirectional else 1
        lasts: list[State] = []
        for k in range(self.num_layers):
            outputs = []
            for d in range(count):
                index = k * count + d
                run: _Direction = self.directions[index]  # type: ignore[assignment]
                output, last = run.run(self.mode, data, sizes, tuple(s[index] for s in state), reverse=d == 1)
                outputs.append(output)
                lasts.append(last)
            data = torch.cat(outputs, 1) if count == 2 else outputs[0]
            if self.training and self.dropout and k < self.num_layers - 1:
                data = nn.functional.dropout(data, self.dropout)
        return data, tuple(torch.stack(part) for part in zip(*lasts, strict=True))

    def _state(self, hx: Tensor | State | None, batch: Size, like: Tensor) -> State:
        layers = self.num_layers * (2 if self.bidirectional else 1)
        sizes = [self.proj_size or self.hidden_size] + ([self.hidden_size] if self.mode == "LSTM" else [])
        if hx is None:
            shapes: list[Any] = [(layers, batch, n) for n in sizes]
            return tuple(torch.zeros(shape, device=like.device, dtype=torch.float32) for shape in shapes)
        states = hx if isinstance(hx, tuple) else (hx,)
        for part, n in zip(states, sizes, strict=True):
            if tuple(part.shape) != (layers, batch, n):
                raise ValueError(f"{self.mode}: expected a state of {(layers, batch, n)}, got {tuple(part.shape)}")
        return tuple(part.float() for part in states)

    @staticmethod
    def _permute(state: State, order: Tensor | None) -> State:
        return state if order is None else tuple(s.index_select(1, order) for s in state)

    def extra_repr(self) -> str:
        wide = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        return f"{self.mode}, {wide}, activations {self.activation or 'in float'}"


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
        self.direction = _Direction(weights, biases, activation)

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
