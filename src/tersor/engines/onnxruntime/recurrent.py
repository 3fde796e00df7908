"""An LSTM of a module that stays in PyTorch, in ONNX Runtime's DynamicQuantizeLSTM."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.engines.onnxruntime.runner import start
from tersor.errors import EngineError
from tersor.network.quantized.kernel import Numbers, Recurrence, State, packed, padded
from tersor.numerics import QTensor

# The index in PyTorch's gate order i, f, g, o of each gate in ONNX's order.
_GATES = (0, 3, 1, 2)
_DOMAINS = {"": 17, "com.microsoft": 1}


class OnnxRuntimeLSTM:
    """An LSTM without projections, with one scale for all inputs of a layer, and one for the states of each step.

    Raises:
        EngineError: it is another layer, or ONNX Runtime cannot load it.
    """

    def __init__(self, layer: Recurrence, threads: int) -> None:
        if layer.mode != "LSTM" or any(part.project is not None for parts in layer.layers for part in parts):
            raise EngineError(f"ONNX Runtime computes LSTMs without projections with integers, not this {layer.mode}")
        self._session = start(lstm_model(layer), threads, waiting=False)

    def __call__(self, values: Tensor, sizes: Sequence[int], state: State) -> tuple[Tensor, State]:
        """Steps ``[steps, batch, in]`` or packed rows, and the first state → packed outputs and the last state."""
        x, active = padded(values, sizes, len(sizes))
        h, c = (np.ascontiguousarray(s.detach().numpy()) for s in state)
        found = self._session.run(None, {"x": x, "lengths": active.sum(0, dtype=np.int32), "h": h, "c": c})
        return packed(found[0], sizes, active), tuple(torch.from_numpy(s) for s in found[1:])

    def __str__(self) -> str:
        return "ONNX Runtime"


def lstm_model(layer: Recurrence) -> Any:
    """An onnx.ModelProto: padded steps, their number for each row, and the first state."""
    from onnx import TensorProto, helper

    nodes, constants = [], []

    def add(op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> None:
        nodes.append(helper.make_node(op, list(inputs), list(outputs), domain=domain, **attributes))

    def constant(name: str, array: np.ndarray) -> str:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        constants.append(helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True))
        return name

    counts = constant("counts", np.array([len(parts) for parts in layer.layers]))
    for kind in "hc":
        add("Split", [kind, counts], [f"{kind}{k}" for k in range(len(layer.layers))], axis=0)
    joined, value = constant("joined", np.array([0, 0, -1])), "x"
    for k, parts in enumerate(layer.layers):
        arrays = _operands(parts)
        w, ws, wz, r, rs, rz, b = (constant(f"{name}{k}", array) for name, array in arrays.items())
        operands = [value, w, r, b, "lengths", f"h{k}", f"c{k}", "", ws, wz, rs, rz]
        direction = "bidirectional" if len(parts) > 1 else "forward"
        width = arrays["r"].shape[1]
        results = [f"y{k}", f"last_h{k}", f"last_c{k}"]
        add("DynamicQuantizeLSTM", operands, results, "com.microsoft", direction=direction, hidden_size=width)
        # [steps, directions, batch, hidden] → [steps, batch, directions · hidden]
        add("Transpose", [f"y{k}"], [f"t{k}"], perm=[0, 2, 1, 3])
        add("Reshape", [f"t{k}", joined], [value := f"out{k}"])
    for kind in "hc":
        add("Concat", [f"last_{kind}{k}" for k in range(len(layer.layers))], [f"last_{kind}"], axis=0)
    kinds = {"x": (TensorProto.FLOAT, 3), "lengths": (TensorProto.INT32, 1)}
    kinds |= dict.fromkeys(("h", "c", value, "last_h", "last_c"), (TensorProto.FLOAT, 3))
    values = {n: helper.make_tensor_value_info(n, kind, [None] * rank) for n, (kind, rank) in kinds.items()}
    ends = [values[n] for n in ("x", "lengths", "h", "c")], [values[n] for n in (value, "last_h", "last_c")]
    graph = helper.make_graph(nodes, "lstm", *ends, constants)
    opsets = [helper.make_opsetid(domain, version) for domain, version in _DOMAINS.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _operands(parts: Sequence[Numbers]) -> dict[str, np.ndarray]:
    """Codes ``[directions, in, 4 · hidden]``, scales and zero points of both products, and biases."""
    found = {}
    for name, weights in (("w", [p.by_input for p in parts]), ("r", [p.by_state for p in parts])):
        found[name] = np.stack([_reorder(w.codes.to(torch.int8)).T for w in weights])
        found[f"{name}_scale"] = np.stack([_reorder(_scales(w)) for w in weights])
        found[f"{name}_zero"] = np.zeros_like(found[f"{name}_scale"], np.int8)
    none = torch.zeros(len(parts[0].by_input.codes))
    biases = [[none if b is None else b.float() for b in (p.input_bias, p.state_bias)] for p in parts]
    found["b"] = np.stack([np.concatenate([_reorder(b) for b in pair]) for pair in biases])
    return found


def _scales(weight: QTensor) -> Tensor:
    return weight.scale.float().reshape(-1).expand(len(weight.codes))


def _reorder(rows: Tensor) -> np.ndarray:
    parts = rows.detach().chunk(4)
    return torch.cat([parts[k] for k in _GATES]).numpy()
