"""Unroll LSTM, GRU and RNN into linear layers and elementwise functions, one time step after the other.

Not all engines have integer recurrent operators, but all have integer linear layers. The product with the input is one
layer for all time steps; the product with the state is one layer per step, all with the same weight.
"""

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx
from torch.fx.node import map_arg

from tersor.network.network import Network, aten, finish, op_name
from tersor.words import said

STEPS = 512  # a longer graph takes too long to compile
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_INPUT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
State = tuple[fx.Node, ...]
MARK = "recurrent"


@dataclass(frozen=True)
class Mark:
    """The role of a node in its recurrent layer, for engines that have an operator for the whole layer.

    Args:
        kind: lstm, gru, rnn_tanh or rnn_relu.
        layer: a name for one layer in one direction.
        role: ``input`` and ``state`` are linear layers; ``output``, ``last_h``, ``last_c`` are results, ``first_h`` and
            ``first_c`` arguments (absent if the state starts at zero).
        time: the time dimension.
        reverse: whether time runs backwards.
    """

    kind: str
    layer: str
    role: str
    time: int
    reverse: bool


def why_not(node: fx.Node) -> str | None:
    """Why a recurrent operator cannot be unrolled, or None if it can."""
    if node.target not in _INPUT:
        return said("packed sequences are not unrolled: pass padded ones of a fixed length")
    x, _, parameters, biases, layers, _, training, bidirectional, batch_first = node.args
    if training:
        return said("it is in training mode")
    shape = x.meta["val"].shape  # type: ignore[union-attr]
    if len(shape) != 3:
        return said("its input has no batch")
    time = 1 if batch_first else 0
    length = shape[time]
    if not isinstance(length, int) or time in x.meta.get("free", ()):  # type: ignore[union-attr]
        return said("its length is not fixed")
    if length > STEPS:
        return said(
            "its {count} steps are too many to unroll; at most {most} are supported",
            count=length, most=STEPS,
        )
    weights = 4 if biases else 2
    if len(parameters) != weights * layers * (2 if bidirectional else 1):  # type: ignore[arg-type, operator]
        return said("its state is projected")
    return None


@dataclass(frozen=True)
class Unroll:
    """Unroll every recurrent operator of fixed length into linear layers and elementwise functions."""

    idempotent: ClassVar[bool] = True

    def __call__(self, network: Network, statistics: Any = None) -> Network:
        if not any(op_name(n) in RECURRENT for n in network.operators()):
            return network
        network = network.edit()
        number: Counter[Any] = Counter()
        for node in network.operators():
            if op_name(node) in RECURRENT and why_not(node) is None:
                number[node.meta.get("path")] += 1
                with network.graph.inserting_before(node):
                    results = _Unrolling(network.graph, node, number[node.meta.get("path")]).results()
                for user in list(node.users):
                    user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
                    network.graph.erase_node(user)
                network.graph.erase_node(node)
        return finish(network)


class _Unrolling:
    """Unrolls one recurrent operator; the new nodes are inserted before it."""

    def __init__(self, graph: fx.Graph, node: fx.Node, number: int) -> None:
        self.graph, self.node, self.kind = graph, node, op_name(node)
        self.traced: dict[str, Any] = {}
        # A module called in a loop is several operators.
        self.path = (str(node.meta.get("path", "")) or self.kind) + (f".call{number}" if number > 1 else "")

    def results(self) -> list[fx.Node]:
        """The output and the parts of the last state, as the operator returns them."""
        x, initial, parameters, biases, layers, _, _, bidirectional, batch_first = self.node.args
        first = [initial] if isinstance(initial, fx.Node) else list(initial)  # type: ignore[arg-type]
        time, directions = (1 if batch_first else 0), (2 if bidirectional else 1)
        count = 4 if biases else 2
        value, lasts = x, []
        for layer in range(layers):  # type: ignore[arg-type]
            outputs = []
            for direction in range(directions):
                k = layer * directions + direction
                tensors = list(parameters[k * count : (k + 1) * count]) + [None] * (4 - count)  # type: ignore[index]
                state = tuple(self.call(aten.select.int, s, 0, k) for s in first)
                name = f"l{layer}{'_reverse' if direction else ''}"
                output, last = self._direction(value, tensors, state, time, reverse=direction == 1, name=name)  # type: ignore[arg-type]
                outputs.append(output)
                lasts.append(last)
            value = self.call(aten.cat.default, outputs, -1) if directions == 2 else outputs[0]
        return [value, *(self.call(aten.stack.default, list(part), 0) for part in zip(*lasts, strict=True))]  # type: ignore[list-item]

    def _direction(
        self, x: fx.Node, tensors: Sequence[Any], state: State, time: int, reverse: bool, name: str
    ) -> tuple[fx.Node, State]:
        by_input, by_state, input_bias, state_bias = tensors
        gates = self.call(aten.linear.default, x, by_input, input_bias, title=f"{self.path}.input_{name}")
        layer, initial = f"{self.path}.{name}", state
        gates.meta[MARK] = Mark(self.kind, layer, "input", time, reverse)
        steps = range(x.meta["val"].shape[time])
        # An engine would fold a product with zeros, and convert its weight to float.
        fresh = zero = op_name(state[0].all_input_nodes[0]) == "zeros"
        outputs: dict[int, fx.Node] = {}
        for t in reversed(steps) if reverse else steps:
            from_input = self.call(aten.select.int, gates, time, t)
            if zero:
                from_state = state_bias or self.call(aten.zeros_like.default, from_input)
            else:
                title = f"{self.path}.state_{name}.{t}"
                from_state = self.call(aten.linear.default, state[0], by_state, state_bias, title=title)
                from_state.meta[MARK] = Mark(self.kind, layer, "state", time, reverse)
            zero = False
            state = _STEPS[self.kind](self, from_input, from_state, state)
            outputs[t] = state[0]
        output = self.call(aten.stack.default, [outputs[t] for t in steps], time)
        roles = [(output, "output"), *zip(state, ("last_h", "last_c"), strict=False)]
        roles += [] if fresh else zip(initial, ("first_h", "first_c"), strict=False)
        for node, role in roles:
            node.meta[MARK] = Mark(self.kind, layer, role, time, reverse)
        return output, state

    def call(self, target: Any, *args: Any, title: str | None = None) -> fx.Node:
        """A new node with its traced value and a readable name."""
        new = self.graph.call_function(target, args)
        # Steps are alike, and tracing values dominates the cost, so traced values are cached.
        key = str((target, map_arg(args, lambda n: _shape(n.meta["val"]))))
        if key not in self.traced:
            self.traced[key] = target(*map_arg(args, lambda n: n.meta["val"]))
        new.meta.update(val=self.traced[key], path=self.path, title=title or f"{self.path}.{op_name(new)}")
        return new

    def parts(self, x: fx.Node, count: int) -> list[fx.Node]:
        """Split the last dimension into ``count`` equal parts."""
        split = self.call(aten.split.Tensor, x, x.meta["val"].shape[-1] // count, -1)
        return [self.call(operator.getitem, split, k) for k in range(count)]


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else [_shape(v) for v in value]


def _lstm(u: _Unrolling, from_input: fx.Node, from_state: fx.Node, state: State) -> State:
    i, f, g, o = u.parts(u.call(aten.add.Tensor, from_input, from_state), 4)
    i, f, o = (u.call(aten.sigmoid.default, gate) for gate in (i, f, o))
    kept = u.call(aten.mul.Tensor, f, state[1])
    cell = u.call(aten.add.Tensor, kept, u.call(aten.mul.Tensor, i, u.call(aten.tanh.default, g)))
    return u.call(aten.mul.Tensor, o, u.call(aten.tanh.default, cell)), cell


def _gru(u: _Unrolling, from_input: fx.Node, from_state: fx.Node, state: State) -> State:
    inputs, states = u.parts(from_input, 3), u.parts(from_state, 3)
    sums = (u.call(aten.add.Tensor, a, b) for a, b in zip(inputs[:2], states[:2], strict=True))
    reset, update = (u.call(aten.sigmoid.default, s) for s in sums)
    gated = u.call(aten.add.Tensor, inputs[2], u.call(aten.mul.Tensor, reset, states[2]))
    new = u.call(aten.tanh.default, gated)
    old = u.call(aten.mul.Tensor, update, u.call(aten.sub.Tensor, state[0], new))
    return (u.call(aten.add.Tensor, new, old),)


def _plain(function: Any) -> Callable[[_Unrolling, fx.Node, fx.Node, State], State]:
    return lambda u, from_input, from_state, state: (u.call(function, u.call(aten.add.Tensor, from_input, from_state)),)


_STEPS: dict[str, Callable[[_Unrolling, fx.Node, fx.Node, State], State]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _plain(aten.tanh.default),
    "rnn_relu": _plain(aten.relu.default),
}

