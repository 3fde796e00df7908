"""A recurrent layer as an OpenVINO model: a loop of a few time steps each, for any length and batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.engines.openvino.lowering import GROUP
from tersor.engines.openvino.runner import Requests, compile_model
from tersor.engines.openvino.weights import Codes
from tersor.network.quantized.kernel import Numbers, Recurrence, State, packed, padded
from tersor.numerics import QTensor

# Time steps of one iteration: an iteration costs as much as a third of a step. Lengths are padded to a multiple.
STEPS = 4
# The products of the gates with the state whose bias can be added to that of the input: all but the GRU's last.
_GATES = {"LSTM": (4, 4), "GRU": (3, 2), "RNN_TANH": (1, 1), "RNN_RELU": (1, 1)}


class OpenVINORecurrent:
    """A recurrent layer in OpenVINO. The state stays where it is in steps past the end of a row's sequence.

    It is compiled for a batch of 1, in which all shapes of a step are known, and for all others.

    Raises:
        EngineError: OpenVINO cannot compile the layer.
    """

    def __init__(self, layer: Recurrence, threads: int) -> None:
        # Products of fewer inputs than a group are computed in float, with int8 weights.
        options = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP}
        model = recurrent_model(layer)
        self._any = Requests(compile_model(model, threads, "f32", options))
        single = model.clone()
        single.reshape({p: [p.partial_shape[0], 1, p.partial_shape[2]] for p in single.inputs})
        self._single = Requests(compile_model(single, threads, "f32", options))

    def __call__(self, values: Tensor, sizes: Sequence[int], state: State) -> tuple[Tensor, State] | None:
        """Steps ``[steps, batch, in]`` or packed rows, and the first state → packed outputs and the last state.

        None if most of an iteration would be padding: PyTorch is faster then.
        """
        if len(sizes) * 2 <= STEPS:
            return None
        x, active = padded(values, sizes, len(sizes) + -len(sizes) % STEPS)
        states = [np.ascontiguousarray(s.detach().numpy()) for s in state]
        compiled = self._single if sizes[0] == 1 else self._any
        output, *last = compiled([x, active[..., None].astype(np.float32), *states])
        return packed(output, sizes, active), tuple(map(torch.from_numpy, last))

    def __str__(self) -> str:
        return "OpenVINO"


def recurrent_model(layer: Recurrence) -> Any:
    """An openvino.Model: padded steps, which of them are active ``[steps, batch, 1]``, and the first state."""
    from openvino import opset13 as ops

    first = layer.layers[0][0]
    hidden = first.by_input.shape[0] // _GATES[layer.mode][0]
    widths = [first.by_state.shape[1]] + ([hidden] if layer.mode == "LSTM" else [])
    count = sum(map(len, layer.layers))
    x, active = (_parameter(-1, width) for width in (first.by_input.shape[1], 1))
    states = [_parameter(count, width) for width in widths]
    firsts = list(zip(*(ops.split(s, _axis(0), count).outputs() for s in states), strict=True))
    value, lasts = x, []
    for directions in layer.layers:
        outputs = []
        for number, direction in enumerate(directions):
            loop = _Loop(layer.mode, direction, -1 if number else 1)
            output, last = loop(value, active, firsts[len(lasts)])
            outputs.append(output)
            lasts.append(last)
        value = ops.concat(outputs, 2) if len(outputs) > 1 else outputs[0]
    last = [ops.concat(list(part), 0) for part in zip(*lasts, strict=True)]
    return _model([ops.result(v) for v in (value, *last)], [x, active, *states], layer.mode)


class _Loop:
    """One layer in one direction (``along`` is 1 or -1): a product over all inputs, and a loop over the steps."""

    def __init__(self, mode: str, direction: Numbers, along: int) -> None:
        self.mode, self.direction, self.along = mode, direction, along
        self.gates, shared = _GATES[mode]
        hidden = direction.by_input.shape[0] // self.gates
        self.input_bias = self.state_bias = None
        if direction.input_bias is not None and direction.state_bias is not None:
            kept = direction.state_bias.detach().float().clone()
            moved = kept.clone()
            moved[shared * hidden :] = 0
            kept[: shared * hidden] = 0
            self.input_bias = direction.input_bias.detach().float() + moved
            self.state_bias = kept if shared < self.gates else None

    def __call__(self, x: Any, active: Any, first: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Values ``[steps, batch, in]`` → outputs of all steps, and the last state."""
        from openvino import opset13 as ops

        gates = _product(x, _weight(self.direction.by_input), self.input_bias)
        width = self.direction.by_input.shape[0]
        slices = _parameter(STEPS, width), _parameter(STEPS, 1)
        state = [_parameter(1, s.get_partial_shape()[2].get_length()) for s in first]
        last, outputs = self._steps(*slices, state)
        results = [ops.result(v) for v in (*last, outputs)]
        loop = ops.tensor_iterator()
        loop.set_function(_model(results, [*slices, *state], self.mode))
        # Backwards from the last slice to the first, or forwards.
        along = (0, STEPS, STEPS, -1, 0) if self.along == 1 else (-1, -STEPS, STEPS, 0, 0)
        for inner, outer in zip(slices, (gates, active), strict=True):
            loop.set_sliced_input(inner, outer.output(0), *along)
        for inner, outer, result in zip(state, first, results, strict=False):
            loop.set_merged_input(inner, outer, result.output(0))
        output = loop.get_concatenated_slices(results[-1].output(0), *along)
        return output, [loop.get_iter_value(r.output(0), -1) for r in results[:-1]]

    def _steps(self, gates: Any, active: Any, state: list[Any]) -> tuple[list[Any], Any]:
        from openvino import opset13 as ops

        weight = _weight(self.direction.by_state)
        project = None if self.direction.project is None else _weight(self.direction.project)
        parts = list(zip(*(ops.split(v, _axis(0), STEPS).outputs() for v in (gates, active)), strict=True))
        outputs = []
        for from_input, now in parts[:: self.along]:
            from_state = _product(state[0], weight, self.state_bias)
            # Part by part, since OpenVINO fuses a step of single parts into one kernel.
            pairs = zip(*(ops.split(v, _axis(2), self.gates).outputs() for v in (from_input, from_state)), strict=True)
            new = _STEP[self.mode](list(pairs), state)
            if project is not None:
                new = [_product(new[0], project, None), *new[1:]]
            past = ops.subtract(_number(1.0), now)
            state = [ops.add(ops.multiply(now, n), ops.multiply(past, s)) for n, s in zip(new, state, strict=True)]
            outputs.append(state[0])
        return state, ops.concat(outputs[:: self.along], 0)


def _lstm(pairs: list[tuple[Any, Any]], state: list[Any]) -> list[Any]:
    from openvino import opset13 as ops

    i, f, g, o = (ops.add(*pair) for pair in pairs)
    kept, new = ops.multiply(ops.sigmoid(f), state[1]), ops.multiply(ops.sigmoid(i), ops.tanh(g))
    cell = ops.add(kept, new)
    return [ops.multiply(ops.sigmoid(o), ops.tanh(cell)), cell]


def _gru(pairs: list[tuple[Any, Any]], state: list[Any]) -> list[Any]:
    from openvino import opset13 as ops

    reset, update = (ops.sigmoid(ops.add(*pair)) for pair in pairs[:2])
    new = ops.tanh(ops.add(pairs[2][0], ops.multiply(reset, pairs[2][1])))
    return [ops.add(new, ops.multiply(update, ops.subtract(state[0], new)))]


def _plain(name: str) -> Any:
    def step(pairs: list[tuple[Any, Any]], state: list[Any]) -> list[Any]:
        from openvino import opset13 as ops

        return [getattr(ops, name)(ops.add(*pairs[0]))]

    return step


_STEP = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _plain("tanh"), "RNN_RELU": _plain("relu")}


def _product(x: Any, weight: Any, bias: Tensor | None) -> Any:
    from openvino import opset13 as ops

    found = ops.matmul(x, weight, False, True)
    return found if bias is None else ops.add(found, ops.constant(bias.reshape(1, 1, -1).numpy()))


def _weight(value: QTensor) -> Any:
    return Codes("weight", value).read()


def _model(results: list[Any], parameters: list[Any], name: str) -> Any:
    import openvino as ov

    made: Any = ov.Model
    return made(results, parameters, name)


def _parameter(steps: int, width: int) -> Any:
    import openvino as ov
    from openvino import opset13 as ops

    return ops.parameter(ov.PartialShape([steps, -1, width]), ov.Type.f32)


def _axis(k: int) -> Any:
    from openvino import opset13 as ops

    return ops.constant(np.array(k))


def _number(value: float) -> Any:
    from openvino import opset13 as ops

    return ops.constant(np.array(value, np.float32))
