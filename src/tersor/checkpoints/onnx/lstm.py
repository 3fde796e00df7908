"""Turn each unrolled LSTM into one DynamicQuantizeLSTM of ONNX Runtime."""

import operator
from collections import defaultdict
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from tersor.checkpoints.onnx.constants import Constants
from tersor.checkpoints.onnx.graph import DOMAIN
from tersor.checkpoints.onnx.rewrites import absorb, constant
from tersor.network.network import Network, finish, op_name
from tersor.network.rewrites.unroll import MARK, Mark
from tersor.numerics.fakequant import quantize_whole_op

MICROSOFT = "com.microsoft"
# The index in PyTorch's gate order of each gate in ONNX's order.
GATE_ORDER = (0, 3, 1, 2)


@torch.library.custom_op(
    "tersor::dynamic_lstm",
    mutates_args=(),
    schema="(Tensor x, Tensor codes_ih, Tensor scale_ih, Tensor codes_hh, Tensor scale_hh, Tensor? bias_ih, "
    "Tensor? bias_hh, Tensor? h, Tensor? c, int time, bool reverse) -> (Tensor, Tensor, Tensor)",
)
def dynamic_lstm(x, codes_ih, scale_ih, codes_hh, scale_hh, bias_ih, bias_hh, h, c, time, reverse):
    """One LSTM layer in one direction with integer products; returns the output, last state and last cell."""
    gates = torch.nn.functional.linear(quantize_whole_op(x, 255), codes_ih.float() * scale_ih, bias_ih)
    weight, width = codes_hh.float() * scale_hh, codes_hh.shape[1]
    batch = x.shape[1 - time]
    h, c = (x.new_zeros(batch, width) if s is None else s for s in (h, c))
    outputs = {}
    for t in range(x.shape[time])[:: -1 if reverse else 1]:
        step = gates.select(time, t) + torch.nn.functional.linear(quantize_whole_op(h, 255), weight, bias_hh)
        i, f, g, o = step.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        outputs[t] = h = o.sigmoid() * c.tanh()
    return torch.stack([outputs[t] for t in sorted(outputs)], time), h.clone(), c.clone()


@dynamic_lstm.register_fake
def _(x, codes_ih, scale_ih, codes_hh, scale_hh, bias_ih, bias_hh, h, c, time, reverse):
    width = codes_hh.shape[1]
    state = x.new_empty(x.shape[1 - time], width)
    return x.new_empty(*x.shape[:2], width), state, torch.empty_like(state)


def roll_lstms(network: Network) -> tuple[Network, dict[str, str]]:
    """Replace every unrolled LSTM whose products are all quantized at run time by one ``dynamic_lstm``.

    Returns:
        The network, and for each ``dynamic_lstm`` node the names of the linear layers it replaces.
    """
    layers: dict[str, dict[str, list[fx.Node]]] = defaultdict(lambda: defaultdict(list))
    network = network.edit()
    for node in network.operators():
        if isinstance(mark := node.meta.get(MARK), Mark) and mark.kind == "lstm":
            layers[mark.layer][mark.role].append(node)
    replaced: dict[str, str] = {}
    for roles in layers.values():
        products = [*roles["input"], *roles["state"]]
        if roles["state"] and all(_is_dynamic(n) for n in products):
            node = _roll(network, roles)
            replaced[node.name] = " ".join(n.name for n in products)
    return finish(network), replaced


def _is_dynamic(product: fx.Node) -> bool:
    x, weight = product.args[:2]
    return op_name(x) == "quantize_whole" and op_name(weight) == "dequantize"  # type: ignore[arg-type]


def _roll(network: Network, roles: dict[str, list[fx.Node]]) -> fx.Node:
    by_input, by_state, output = roles["input"][0], roles["state"][0], roles["output"][0]
    mark: Mark = by_input.meta[MARK]
    weights = [w for product in (by_input, by_state) for w in product.args[1].args[:2]]  # type: ignore[union-attr]
    biases = [(*product.args, None)[2] for product in (by_input, by_state)]
    first = [next(iter(roles[r]), None) for r in ("first_h", "first_c")]
    graph = network.graph
    nodes = list(graph.nodes)
    later = set(nodes[nodes.index(output) + 1 :])  # the time steps read the last state too
    with graph.inserting_before(output):
        x = by_input.args[0].args[0]  # type: ignore[union-attr]
        call = torch.ops.tersor.dynamic_lstm.default
        arguments = (x, *weights, *biases, *first, mark.time, mark.reverse)
        node = graph.create_node("call_function", call, arguments, {}, f"{by_input.name}_lstm")
        parts: list[Any] = [graph.call_function(operator.getitem, (node, k)) for k in range(3)]
    for old, new in zip((output, roles["last_h"][0], roles["last_c"][0]), parts, strict=True):
        new.meta["val"] = old.meta["val"]
        old.replace_all_uses_with(new, delete_user_cb=later.__contains__)
    return node


def write_lstms(graph: ir.Graph, constants: Constants, layers: dict[str, str]) -> None:
    """Replace every ``dynamic_lstm`` node by a DynamicQuantizeLSTM.

    Args:
        layers: the names that ``roll_lstms`` returned, in order; the exporter loses the names of these nodes.
    """
    nodes = [n for n in graph if n.domain == DOMAIN and n.op_type == "dynamic_lstm"]
    for node, (name, parts) in zip(nodes, layers.items(), strict=True):
        node.name = name
        absorb(_write(graph, constants, node), parts)


def _write(graph: ir.Graph, constants: Constants, node: ir.Node) -> ir.Node:
    name, time = str(node.name), node.attributes["time"].as_int()
    x, *inputs = (*node.inputs, *[None] * 8)[:9]  # absent trailing inputs are not stored
    weights = [t for k in (0, 2) for t in _weight(constants, f"{name}.{'WR'[k // 2]}", inputs[k], inputs[k + 1])]
    biases = [constant(b) for b in inputs[4:6]]
    width = int(weights[3].shape[1])  # type: ignore[index]
    joined = np.concatenate([np.zeros(4 * width, np.float32) if b is None else _reorder_gates(b) for b in biases])
    chain: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value | None], outputs: int = 1, domain: str = "", **attributes: Any) -> ir.Node:
        new = ir.node(op, inputs, attributes, domain=domain, num_outputs=outputs, name=f"{name}/{op}_{len(chain)}")
        for k, value in enumerate(new.outputs):
            value.name = f"{new.name}.{k}"
        chain.append(new)
        return new

    axis = [constants.value(np.array([k]), f"{name}/axis{k}") for k in (0, 1)]
    source = add("Transpose", [x], perm=[1, 0, 2]).outputs[0] if time == 1 else x
    first = [add("Unsqueeze", [s, axis[0]]).outputs[0] if s is not None else None for s in inputs[6:8]]
    (w, w_scale, w_zero), (r, r_scale, r_zero) = weights[:3], weights[3:]
    bias = constants.value(joined[None], f"{name}.bias")
    operands = [source, w, r, bias, None, *first, None, w_scale, w_zero, r_scale, r_zero]
    direction = "reverse" if node.attributes["reverse"].as_int() else "forward"
    lstm = add("DynamicQuantizeLSTM", operands, 3, MICROSOFT, direction=direction, hidden_size=width)
    lstm.name = name
    results = [add("Squeeze", [lstm.outputs[0], axis[1]])]
    if time == 1:
        results = [add("Transpose", [results[0].outputs[0]], perm=[1, 0, 2])]
    results += [add("Squeeze", [lstm.outputs[k], axis[0]]) for k in (1, 2)]
    graph.insert_before(node, chain)
    for old, new in zip(node.outputs, results, strict=True):
        kept, old.name = old.name, None
        new.outputs[0].name, new.outputs[0].type, new.outputs[0].shape = kept, old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return lstm


def _weight(constants: Constants, name: str, codes: Any, scale: Any) -> list[ir.Value]:
    """Codes ``[1, in, 4 · hidden]``, scales and zero points ``[1, 4 · hidden]``."""
    array, steps = constant(codes), constant(scale)
    assert array is not None and steps is not None
    steps = np.broadcast_to(steps.reshape(-1), array.shape[0])
    transposed = np.ascontiguousarray(_reorder_gates(array).T)[None]
    return [
        constants.value(transposed, f"{name}.codes"),
        constants.value(_reorder_gates(steps).astype(np.float32)[None], f"{name}.scale"),
        constants.value(np.zeros((1, len(steps)), np.int8), f"{name}.zero_point"),
    ]


def _reorder_gates(rows: np.ndarray) -> np.ndarray:
    """Reorder rows from PyTorch's gate order i, f, g, o to ONNX's i, o, f, g."""
    parts = np.split(rows, 4)
    return np.concatenate([parts[k] for k in GATE_ORDER])

