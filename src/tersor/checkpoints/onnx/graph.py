"""Export a Network to an ONNX graph with each quantizer still one node, and every node named as in the Network.

PyTorch's exporter translates the operators; Tersor's operators pass through it in the domain ``tersor``, and
``quantizers`` then rewrites them as QuantizeLinear and DequantizeLinear.
"""

import ast
import re
from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from onnxscript.values import Op, Opset

from tersor.errors import EngineError
from tersor.network.export import exported
from tersor.network.network import Network, op_name
from tersor.process import quiet

DOMAIN = "tersor"
OPSET = 21
# When an operator becomes several nodes, the one of these types gets its name.
_WORK = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Irrelevant warnings of the exporter: torchvision is missing, it calls a deprecated function.
_NOISY_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
_INTEGER, _STRING = OpSchema.AttrType.INT, OpSchema.AttrType.STRING


def export_graph(network: Network) -> ir.Model:
    """Export the Network to an ONNX IR model (opset 21, with a dynamic batch if the Network has one).

    When a Network node becomes several ONNX nodes, the main one and the last value get its name; the others are called
    ``name/Type``. Quantizers are nodes ``tersor::fake_quantize``, ``dequantize``, ``cast`` and ``quantize_whole``.

    Raises:
        EngineError: ONNX does not support an operator; the message names it.
    """
    program = _program(network)
    table = {
        torch.ops.tersor.fake_quantize.default: _fake_quantize(),
        torch.ops.tersor.dequantize.default: _dequantize(),
        torch.ops.tersor.cast.default: _cast(),
        torch.ops.tersor.quantize_whole.default: _quantize_whole(),
    }
    if any(op_name(n) == "dynamic_lstm" for n in network.operators()):
        table[torch.ops.tersor.dynamic_lstm.default] = _dynamic_lstm()
    try:
        with quiet(*_NOISY_LOGGERS):
            found = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
                custom_translation_table=table,
            )
    except torch.onnx.OnnxExporterError as error:
        raise EngineError(
            f"an operator of this network cannot be exported to ONNX ({_innermost(error)}): keep that part "
            "out of the network, or use an engine that does not need ONNX: openvino or torch"
        ) from error
    assert found is not None
    model = found.model
    with quiet(*_NOISY_LOGGERS):
        fold_constants(model, should_fold=_fold)
        remove_unused_nodes(model)
    _name(model, network)
    return model


def _fold(node: ir.Node) -> bool | None:
    """False for the cast of a weight stored in half precision, which must stay; None, the default rules, otherwise."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    return (
        False if source is not None and source.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else None
    )


def _program(network: Network) -> Any:
    """Export the graph again, with each node named as in the Network."""
    program = exported(network)
    for node in program.graph.nodes:
        origin = node.meta.get("from_node")
        if node.op == "call_function":
            # The module stack is the only metadata that the exporter copies to the ONNX nodes.
            node.meta["nn_module_stack"] = {"": (origin[-1].name if origin else node.name, "")}
    return program


def _operator(name: str, inputs: tuple[str, ...], attributes: dict[str, Any], outputs: int = 1) -> Op:
    """An operator in the domain ``tersor``; its types are unrestricted, since it is never written to a file."""
    types = [(t, ["tensor(float)", "tensor(float16)", "tensor(int8)"], "") for t in (*inputs, "out")]
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(i, i, param_option=_optional(i)) for i in inputs],
        outputs=[OpSchema.FormalParameter(f"y{k}", "out") for k in range(outputs)],
        type_constraints=types,
        attributes=[OpSchema.Attribute(a, kind) for a, kind in attributes.items()],
    )
    return Op(Opset(DOMAIN, 1), name, schema)


def _optional(name: str) -> Any:
    options = OpSchema.FormalParameterOption
    return options.Optional if name in ("bias_ih", "bias_hh", "h", "c") else options.Single


def _fake_quantize() -> Callable[..., Any]:
    op = _operator(
        "fake_quantize", ("x", "scale", "zero_point"), dict.fromkeys(("low", "high", "block"), _INTEGER)
    )

    def translate(x, scale, zero_point, low: int, high: int, block: int):
        return op(x, scale, zero_point, low=low, high=high, block=block)

    return translate


def _dequantize() -> Callable[..., Any]:
    op = _operator("dequantize", ("codes", "scale", "zero_point"), {"block": _INTEGER})

    def translate(codes, scale, zero_point, block: int):
        return op(codes, scale, zero_point, block=block)

    return translate


def _cast() -> Callable[..., Any]:
    op = _operator("cast", ("x", "scale"), {"format": _STRING})

    def translate(x, format: str, scale):
        return op(x, scale, format=format)

    return translate


def _quantize_whole() -> Callable[..., Any]:
    op = _operator("quantize_whole", ("x",), {"high": _INTEGER})

    def translate(x, high: int):
        return op(x, high=high)

    return translate


def _dynamic_lstm() -> Callable[..., Any]:
    names = ("x", "codes_ih", "scale_ih", "codes_hh", "scale_hh", "bias_ih", "bias_hh", "h", "c")
    op = _operator("dynamic_lstm", names, {"time": _INTEGER, "reverse": _INTEGER}, outputs=3)

    def translate(x, codes_ih, scale_ih, codes_hh, scale_hh, bias_ih, bias_hh, h, c, time: int, reverse: bool):
        tensors = (x, codes_ih, scale_ih, codes_hh, scale_hh, bias_ih, bias_hh, h, c)
        return op(*tensors, time=time, reverse=int(reverse))

    return translate


def _name(model: ir.Model, network: Network) -> None:
    graph = model.graph
    by_owner: dict[str, list[ir.Node]] = {}
    for node in graph:
        # No operator of the Network has a slash in its name.
        by_owner.setdefault(_owner(node) or f"/{node.name}", []).append(node)
    for owner, nodes in by_owner.items():
        main = next((n for n in nodes if n.op_type in _WORK), nodes[-1])
        for k, node in enumerate(nodes):
            node.name = owner if node is main else f"{owner}/{node.op_type}_{k}"
            for j, value in enumerate(node.outputs):
                value.name = owner if node is nodes[-1] and j == 0 else f"{owner}/{k}.{j}"
            node.metadata_props.clear()
            node.doc_string = None
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)):
        value.metadata_props.clear()
    _name_inputs_and_outputs(graph, network)
    graph.name = "network"


def _owner(node: ir.Node) -> str | None:
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    return str(ast.literal_eval(scopes)[0]) if scopes else None


def _name_inputs_and_outputs(graph: ir.Graph, network: Network) -> None:
    """Give inputs and outputs the Network's names; an output that is an input or a duplicate is copied."""
    sizes: dict[str, str] = {}
    for k, (value, name) in enumerate(zip(graph.inputs, network.input_names, strict=True)):
        value.name = name
        for dim, size in network.varying(k).items():
            if value.shape is not None and not isinstance(value.shape[dim], int):
                sizes.setdefault(str(value.shape[dim]), size)
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else _size(str(d), sizes) for d in value.shape])
    taken = {v.name for v in graph.inputs} | {v.name for n in graph for v in n.outputs}
    for k, name in enumerate(network.output_names):
        value = graph.outputs[k]
        if value.producer() is None or any(value is v for v in graph.outputs[:k]):
            copied = ir.node("Identity", [value], name=f"{name}/Identity")
            copied.outputs[0].type, copied.outputs[0].shape = value.type, value.shape
            graph.append(copied)
            graph.outputs[k] = value = copied.outputs[0]
        if name in taken and value.name != name:
            clash = next(v for n in graph for v in n.outputs if v.name == name)
            clash.name = f"{name}/value"
        value.name = name


def _size(text: str, sizes: dict[str, str]) -> str:
    """A size, or an expression of sizes such as ``3*s77``, in the Network's names."""
    return re.sub(r"\w+", lambda found: sizes.get(found[0], found[0]), text)


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[
        :200
    ]


def proto(model: ir.Model) -> onnx.ModelProto:
    """The model as an ONNX protobuf message."""
    return ir.to_proto(model)
