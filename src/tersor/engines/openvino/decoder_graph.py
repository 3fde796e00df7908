"""A causal language model as a stateful OpenVINO model: compressed weights, and the cache as state."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from tersor.engines.openvino.decoder_trace import Trace, trace
from tersor.engines.openvino.weights import Codes, held
from tersor.errors import EngineError
from tersor.numerics import QTensor
from tersor.process import quiet

Weights = Mapping[str, Tensor | QTensor]
# The model's inputs.
TOKENS, WANTED, ROWS = "input_ids", "wanted", "beam_idx"


def decoder_model(model: nn.Module, weights: Weights) -> Any:
    """An openvino.Model of one step. Its inputs are ``input_ids`` [batch, tokens]; ``beam_idx`` [batch], the row of the
    cache that each row continues; and, if the model supports it, ``wanted``, the positions whose logits are computed.

    Each weight is looked up once, when its constant is made, so that a lazy mapping never loads all of them at once.

    Raises:
        EngineError: the model cannot be decoded, or a weight is missing, has the wrong shape, or has a format that
            OpenVINO does not keep.
        CaptureError: torch.export cannot capture the model.
    """
    import openvino as ov

    sources = _sources(model, weights)
    traced = trace(model)
    with quiet("openvino"):
        try:
            converted = ov.convert_model(traced.program)
        except Exception as error:
            raise EngineError(f"OpenVINO cannot convert {type(model).__name__}: {str(error)[:400]}") from error
    _substitute(traced, converted.get_parameters()[-len(traced.weights) :], sources, weights)
    return _stateful(converted, traced)


def _sources(model: nn.Module, weights: Weights) -> dict[str, str]:
    """The name in ``weights`` of each parameter: its own name, or that of a parameter that it is tied to."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    found = {}
    for name, parameter in parameters.items():
        same = [name, *names[id(parameter)]]
        source = next((n for n in same if n in weights), None)
        if source is None:
            words = " or ".join(dict.fromkeys(same))
            raise EngineError(f"the weights lack {words}: the folder is incomplete, or of another model")
        found[name] = source
    return found


def _substitute(trace: Trace, inputs: list[Any], sources: Mapping[str, str], weights: Weights) -> None:
    """Replace the graph's weight inputs with constants."""
    made: dict[tuple[str, bool], Any] = {}
    for node, (name, shape) in zip(inputs, trace.weights.items(), strict=True):
        for port in list(node.output(0).get_target_inputs()):
            reader, source = port.get_node(), sources[name]
            is_product = reader.get_type_name() == "MatMul" and port.get_index() == 1
            # The kernels of products need the weight as [out, in]; GPT-2 stores it as [in, out].
            turned = is_product and not reader.get_transpose_b() and len(shape) == 2
            if (source, turned) not in made:
                made[source, turned] = held(source, weights[source], shape, turned)
            weight = made[source, turned]
            if not isinstance(weight, Codes):
                port.replace_source_output(weight.output(0))
                continue
            if turned:
                reader = _turned(reader)
            reader.set_friendly_name(f"{name.removesuffix('.weight')}/{reader.get_type_name()}")
            reader.input(port.get_index()).replace_source_output(weight.read().output(0))


def _turned(product: Any) -> Any:
    """The same product with a transposed weight."""
    from openvino import opset13 as ops

    new = ops.matmul(product.input_value(0), product.input_value(1), product.get_transpose_a(), True)
    product.output(0).replace(new.output(0))
    return new


def _stateful(model: Any, traced: Trace) -> Any:
    """The model with keys and values as internal state, which is empty at first."""
    import openvino as ov
    from openvino import opset13 as ops

    tokens, wanted, *past = model.get_parameters()[: 2 + len(traced.shapes)]
    logits, *kept = model.get_results()
    rows = ops.parameter(ov.PartialShape([-1]), ov.Type.i32)
    batch = ops.gather(ops.shape_of(tokens, "i64"), ops.constant(np.array([0])), ops.constant(0))
    sinks = []
    for number, (old, new, shape) in enumerate(zip(past, kept, traced.shapes, strict=True)):
        sinks.append(_remembered(f"past.{number}", old, new, list(shape), batch, rows))
    inputs = {TOKENS: tokens, WANTED: wanted, ROWS: rows}
    if not traced.chooses:
        del inputs[WANTED]
    for name, node in inputs.items():
        node.set_friendly_name(name)
        node.output(0).get_tensor().set_names({name})
    for node in (tokens, rows):
        node.set_layout(ov.Layout("[N,...]"))
    tokens.set_partial_shape(ov.PartialShape([-1, -1]))
    found: Any = ov.Model([logits], sinks, list(inputs.values()))  # type: ignore[arg-type]
    logits.output(0).get_tensor().set_names({"logits"})
    found.validate_nodes_and_infer_types()
    return found


def _remembered(name: str, old: Any, new: Any, shape: list[int], batch: Any, rows: Any) -> Any:
    """One of the cache's tensors as a variable of the model: its input becomes a read, its output an assignment."""
    import openvino as ov
    from openvino import opset13 as ops
    from openvino.op.util import Variable, VariableInfo

    info = VariableInfo()
    info.variable_id, info.data_type = name, ov.Type.f32
    info.data_shape = ov.PartialShape([-1, shape[1], -1, shape[3]])
    variable = Variable(info)
    empty = ops.concat([batch, ops.constant(np.array([shape[1], 0, shape[3]]))], 0)
    read = ops.read_value(ops.broadcast(ops.constant(np.float32(0)), empty), variable)
    ordered = ops.gather(read, rows, ops.constant(0))
    for port in list(old.output(0).get_target_inputs()):
        # Only the concatenation may read the reordered cache; otherwise attention is not fused with it.
        length = port.get_node().get_type_name() == "ShapeOf"
        port.replace_source_output((read if length else ordered).output(0))
    assigned = ops.assign(new.input(0).get_source_output().get_node(), variable)
    # Disconnect the dropped result, which would still count as a consumer.
    new.input(0).replace_source_output(ops.constant(np.float32(0)).output(0))
    return assigned
