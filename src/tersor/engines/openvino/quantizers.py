"""Our quantizers as OpenVINO operators: FakeQuantize, and weights as codes that the CPU plugin keeps compressed."""

from typing import Any, cast

import numpy as np
import torch
from torch import fx

from tersor.network.network import LINEARS, Network, add_tensor, finish, op_name
from tersor.numerics.packing import pack
from tersor.numerics.ranges import expand

# A group size that divides OpenVINO's run-time group and is smaller than it.
_SMALL = 32
# Levels of symmetric int16. With this number, the CPU plugin may remove the quantizer and feed its consumers uint8 (on
# CPUs without AMX, with and without AVX512-FP16); with one level more, it rounds in float on all CPUs tested.
_UNSAFE_LEVELS = 65_535


def fake_quantize(context: Any) -> Any:
    """Convert a quantizer of activations.

    Symmetric int16 includes the code −32768, so values below the range may be quantized to one code less than in the
    simulation.
    """
    from openvino import opset13 as ops

    scale, zero_point = (context.get_input(k).get_node().get_data() for k in (1, 2))
    low, high = (context.get_values_from_const_input(k) for k in (3, 4))
    if high - low + 1 == _UNSAFE_LEVELS:
        low -= 1
    # Multiply in float32, as the engine does.
    bounds = [ops.constant(((np.float32(b) - zero_point) * scale).astype(np.float32)) for b in (low, high)]
    return ops.fake_quantize(context.get_input(0), *bounds, *bounds, levels=int(high - low + 1)).outputs()


def dequantize(context: Any) -> Any:
    """Convert a stored weight: codes · scale, with a separate dimension for the groups of inputs.

    A ragged last group is padded with zeros, which are sliced off after the product.
    """
    from openvino import opset13 as ops

    codes, scale = (context.get_input(k).get_node().get_data() for k in (0, 1))
    block = context.get_values_from_const_input(3)
    if not block or scale.shape[1] in (1, codes.shape[1]):
        return ops.multiply(ops.convert(_held(codes), "f32"), ops.constant(scale)).outputs()
    (rows, width, *rest), groups = codes.shape, scale.shape[1]
    codes = np.pad(codes, [(0, 0), (0, groups * block - width), *[(0, 0)] * len(rest)])
    held = _held(codes.reshape(rows, groups, block, *rest))
    weight = ops.multiply(ops.convert(held, "f32"), ops.constant(np.expand_dims(scale, 2)))
    weight = ops.reshape(weight, ops.constant([rows, groups * block, *rest]), False)
    if groups * block > width:
        weight = ops.slice(weight, *(ops.constant([n]) for n in (0, width, 1, 1)))
    return weight.outputs()


def _held(codes: np.ndarray) -> Any:
    """A constant with 4 bits per code if all codes fit; nonzero int8 weights never do, since their codes reach 127."""
    import openvino as ov
    from openvino import opset13 as ops

    if not codes.any() or codes.min() < -8 or codes.max() > 7:
        return ops.constant(codes)
    tensor = ov.Tensor(ov.Type.i4, ov.Shape(codes.shape))
    # Use memory that OpenVINO owns, since the constant would outlive an array's memory.
    tensor.data.reshape(-1).view(np.uint8)[:] = pack(torch.tensor(codes), 4).numpy()
    return ops.constant(tensor)


def float_inputs(network: Network, group: int) -> Network:
    """The network, changed so that linear layers without run-time quantization keep their inputs in float.

    OpenVINO would quantize these inputs too, since the run-time group size ``group`` is one setting for the whole
    model. It does so only if the weights' groups are multiples of it, so these weights get smaller groups.
    """
    if not any(op_name(n) == "quantize_rows" for n in network.operators()):
        return network
    network = network.edit()
    for node in network.operators():
        source, weight = (*node.args, None, None)[:2]
        if node.target not in LINEARS or not isinstance(source, fx.Node) or not isinstance(weight, fx.Node):
            continue
        if op_name(source) != "quantize_rows" and op_name(weight) == "dequantize":
            _regroup(network, node, weight, group)
    return finish(network)


def _regroup(network: Network, layer: fx.Node, weight: fx.Node, group: int) -> None:
    codes, scale, zero_point, block = cast("tuple[fx.Node, fx.Node, fx.Node, int]", weight.args)
    shape = network.tensor(codes).shape
    if block % group or shape[1] < group:
        return
    steps = expand(network.tensor(scale), shape, block).expand(shape)[:, ::_SMALL].contiguous()
    with network.graph.inserting_before(layer):
        held = network.graph.get_attr(add_tensor(network, f"{layer.name}_scale", steps))
        args, name = (codes, held, zero_point, _SMALL), f"{weight.name}_{_SMALL}"
        node = network.graph.create_node("call_function", weight.target, args, {}, name)
    node.meta.update(weight.meta)
    layer.update_arg(1, node)
