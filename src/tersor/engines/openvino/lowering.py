"""From the Network to an openvino.Model."""

from typing import Any

import numpy as np

from tersor.engines.openvino.graph import MARK, decomposed, readable
from tersor.engines.openvino.pools import plain_pools
from tersor.engines.openvino.quantizers import dequantize, fake_quantize, float_inputs
from tersor.engines.openvino.runner import GROUP_KEY, GROUP_OPTION, first_lines
from tersor.errors import EngineError
from tersor.network.network import Network, op_name
from tersor.process import quiet

# The run-time group size: adjacent values of a token that share a scale.
GROUP = 128


def lowered(network: Network) -> Any:
    """The network as an openvino.Model whose operators keep our node names."""
    import openvino as ov

    model = _converted(float_inputs(network, GROUP))
    shapes = {}
    for k, (port, example) in enumerate(zip(model.inputs, network.example, strict=True)):
        port.get_node().set_element_type(ov.Type(example.numpy().dtype))
        varying = network.varying(k)
        shapes[port] = [-1 if dim in varying else size for dim, size in enumerate(example.shape)]
        if 0 in varying:  # the file's word for a batch, which ov::set_batch asks for
            port.get_node().set_layout(ov.Layout("[N,...]"))
    try:
        model.reshape(shapes)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot give this network its shapes: {first_lines(error)}") from error
    names = {op_name(n) for n in network.operators()}
    if "quantize_rows" in names:
        model.set_rt_info(str(GROUP), GROUP_KEY)
    if "dequantize" in names:
        # By default OpenVINO would quantize the inputs of products with compressed weights, whoever opens the file.
        model.set_rt_info(str(GROUP if "quantize_rows" in names else 0), GROUP_OPTION)
    plain_pools(model)
    _share_bounds(model)
    _shorten_names(model)
    for port, name in zip(model.inputs, network.input_names, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, network.output_names, strict=True):
        port.get_tensor().set_names({name})
    return model


def _converted(network: Network) -> Any:
    """The network in OpenVINO's operators; decomposed if the frontend rejects an operator as captured."""
    module = readable(network)
    try:
        try:
            return _read(module)
        except Exception:  # another overload or form of an operator that the frontend reads
            return _read(decomposed(network))
    except Exception as error:
        raise EngineError(f"OpenVINO cannot convert this network: {first_lines(error)}") from error


def _read(module: Any) -> Any:
    import openvino as ov
    from openvino.frontend.pytorch import ConversionExtension
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    extensions = [
        ConversionExtension("tersor.fake_quantize.default", fake_quantize),
        ConversionExtension("tersor.dequantize.default", dequantize),
        ConversionExtension("tersor.quantize_rows.default", lambda context: [context.get_input(0)]),
        ConversionExtension("aten.softmax.int", _softmax),
        ConversionExtension("aten.mish.default", _mish),
    ]
    with quiet():
        return ov.convert_model(TorchFXPythonDecoder(module, dynamic_shapes=True), extension=extensions)


def _share_bounds(model: Any) -> None:
    """Share equal bounds of FakeQuantize operators, since the converter makes four constants for each operator."""
    shared: dict[bytes, Any] = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() == "FakeQuantize":
            for k in range(1, 5):
                source = op.input(k).get_source_output()
                constant = source.get_node()
                if constant.get_type_name() == "Constant":
                    key = constant.get_data().tobytes() + str(source.get_shape()).encode()
                    op.input(k).replace_source_output(shared.setdefault(key, source))


def _shorten_names(model: Any) -> None:
    """Shorten each name to our node's name and a number, since long names can outweigh a small network's weights."""
    for number, op in enumerate(model.get_ordered_ops()):
        owner, found, _ = op.get_friendly_name().partition(MARK)
        op.set_friendly_name(f"{owner}/{number}" if found else f"/{number}")
        for port in op.outputs():
            port.get_tensor().set_names(set())


def _mish(context: Any) -> Any:
    """Mish; after anything but a convolution, in simpler operators.

    OpenVINO tries to generate code for a Mish outside a convolution that a quantizer follows, but has no such code.
    """
    from openvino import opset13 as ops

    x = context.get_input(0)
    maker = x.get_node()
    if maker.get_type_name() == "Add":
        maker = maker.input_value(0).get_node()
    if maker.get_type_name() == "Convolution":
        return ops.mish(x).outputs()
    one = np.float32(1)
    # tanh(log(1 + e)) = n / (n + 2) with n = e·(e + 2); beyond 20 it is 1 in float32.
    e = ops.exp(ops.minimum(x, 20 * one))
    n = ops.multiply(e, ops.add(e, 2 * one))
    return ops.multiply(x, ops.divide(n, ops.add(n, 2 * one))).outputs()


def _softmax(context: Any) -> Any:
    from openvino import opset13 as ops

    return ops.softmax(context.get_input(0), context.get_values_from_const_input(1)).outputs()
