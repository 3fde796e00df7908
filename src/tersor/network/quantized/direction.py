"""One recurrent layer in one direction, step by step in PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tersor.network.quantized.kernel import Numbers, Size, State
from tersor.network.quantized.weight import Product, QuantizedWeight
from tersor.numerics import QuantSpec


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


class Direction(nn.Module):
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

    def pack(self) -> None:
        """Create the layout for PyTorch's integer products now instead of in the first call."""
        for weight in (self.ih, self.hh, self.hr):
            if weight is not None and self.activation is not None:
                weight.pack()

    def numbers(self) -> Numbers:
        """The weights and biases for an engine."""
        project = None if self.hr is None else self.hr.qtensor()
        return Numbers(self.ih.qtensor(), self.hh.qtensor(), project, self.bias_ih, self.bias_hh)

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
