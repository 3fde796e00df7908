"""LSTM, GRU and RNN with integer products of input and state."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tersor.network.quantized.direction import Direction
from tersor.network.quantized.graph import making_graph
from tersor.network.quantized.kernel import Build, Prepared, Recurrence, Size, State
from tersor.network.quantized.layers import Quantized
from tersor.network.quantized.weight import QuantizedWeight
from tersor.numerics import QuantSpec

_NAME = re.compile(r"(weight|bias)_(ih|hh|hr)_l(\d+)(_reverse)?")


class QuantizedRecurrent(Quantized):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` of any number of layers, directions, and projections.

    Inputs and outputs are those of the replaced module: padded or packed sequences, with or without a batch dimension
    or an initial state. Returns the dtype of its input, and provides its weights by name (``weight_hh_l0``).

    Args:
        build: creates an engine's kernel, which computes calls without gradient on the CPU; the engine quantizes to
            int8 at run time, with its own scales. Without a kernel, PyTorch computes: in graphs (export, compilation,
            traces), with dropout, and if an engine fails, which raises a warning. The kernel is created with the
            module, and again when its codes or biases are loaded, moved or copied; it is not part of the state.
    """

    _build: Build | None = None
    _prepared: Prepared | None = None

    def __init__(
        self,
        layer: nn.RNNBase,
        weights: Sequence[Sequence[QuantizedWeight]],
        biases: Sequence[Sequence[Tensor]],
        activation: QuantSpec | None,
        build: Build | None = None,
    ) -> None:
        super().__init__()
        self.mode, self.activation = layer.mode, activation
        self.input_size, self.hidden_size, self.num_layers = layer.input_size, layer.hidden_size, layer.num_layers
        self.batch_first, self.bidirectional, self.proj_size = layer.batch_first, layer.bidirectional, layer.proj_size
        self.dropout, self.bias = layer.dropout, layer.bias
        self.nonlinearity = getattr(layer, "nonlinearity", "tanh")
        parts = zip(weights, biases, strict=True)
        self.directions = nn.ModuleList(Direction(w, b, activation) for w, b in parts)
        self._build = build
        self._prepare()

    def _prepare(self) -> Prepared:
        """Create the engine's kernel, or else PyTorch's layout of the weights."""
        runs: Any = self.directions
        kernel = None
        if self.activation is not None and self._build is not None and not making_graph():
            parts, count = [run.numbers() for run in runs], 2 if self.bidirectional else 1
            layers = tuple(tuple(parts[k : k + count]) for k in range(0, len(parts), count))
            kernel = self._build(Recurrence(self.mode, self.activation, layers))
        if kernel is None:
            for run in runs:
                run.pack()
        self._prepared = Prepared(self, kernel)
        return self._prepared

    def _in_engine(self, data: Tensor, sizes: Sequence[Size], state: State) -> tuple[Tensor, State] | None:
        """The results of ``_layers``, computed by the engine; None without one, or if it does not support this call."""
        if self._build is None or making_graph() or (self.training and self.dropout and self.num_layers > 1):
            return None
        prepared = self._prepared
        if prepared is None or not prepared.is_of_now():
            prepared = self._prepare()
        if prepared.kernel is None or not prepared.takes(data, state):
            return None
        try:
            return prepared.kernel(data, sizes, state)  # type: ignore[arg-type]
        except Exception as error:
            said = f"{self.mode} of width {self.hidden_size}: {prepared.kernel} fails, and PyTorch computes it: {error}"
            warnings.warn(said, RuntimeWarning, stacklevel=2)
            self._prepared = Prepared(self, None)
            return None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedRecurrent":
        super()._apply(fn, recurse)
        if self._build is not None:
            self._prepare()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._build is not None:
            self._prepare()

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
        if input.data.shape[-1] != self.input_size:
            raise ValueError(f"{self.mode}: expected {self.input_size} features, got {tuple(input.data.shape)}")
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
        data, state = self._layers(x.float(), [batch] * length, state)
        output = data.reshape(length, batch, -1)
        if single:
            return output.squeeze(1), tuple(s.squeeze(1) for s in state)
        return output.transpose(0, 1) if self.batch_first else output, state

    def _layers(self, data: Tensor, sizes: Sequence[Size], state: State) -> tuple[Tensor, State]:
        """Steps ``[steps, batch, in]`` or packed rows, and the first state → packed outputs and the last state."""
        found = self._in_engine(data, sizes, state)
        if found is not None:
            return found
        data = data.flatten(0, 1) if data.ndim == 3 else data
        count = 2 if self.bidirectional else 1
        lasts: list[State] = []
        for k in range(self.num_layers):
            outputs = []
            for d in range(count):
                index = k * count + d
                run: Direction = self.directions[index]  # type: ignore[assignment]
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
        kernel = None if self._prepared is None else self._prepared.kernel
        where = "" if kernel is None else f", in {kernel}"
        return f"{self.mode}, {wide}, activations {self.activation or 'in float'}{where}"
