"""Export a quantized Network as an explicit QDQ ONNX file with integer initializers and each weight stored once."""

from pathlib import Path

import onnx
import onnx_ir as ir

from tersor.checkpoints.onnx.constants import Constants
from tersor.checkpoints.onnx.graph import OPSET, export_graph
from tersor.checkpoints.onnx.guards import guard_floats
from tersor.checkpoints.onnx.lstm import MICROSOFT, roll_lstms, write_lstms
from tersor.checkpoints.onnx.nbits import FLOAT, INT8, write_packed
from tersor.checkpoints.onnx.products import write_products
from tersor.checkpoints.onnx.quantizers import Style, Writer
from tersor.checkpoints.onnx.rewrites import (
    drop_dead,
    drop_no_ops,
    fold_pads,
    is_output,
    propagate_quantizers,
    use_global_pooling,
)
from tersor.files import whole_file, whole_files
from tersor.network.corrections.int32_bias import fit_biases
from tersor.network.network import Network, title

FILE = "model.onnx"
# Protobuf limits a message to 2 GiB.
LIMIT = 2**31 - 2**20


def to_onnx(network: Network, style: Style = Style()) -> onnx.ModelProto:  # noqa: B008  (frozen)
    """Export the quantized Network to an ONNX model of opset 21.

    Quantizers become QuantizeLinear and DequantizeLinear with uint8, int8, int16 or int4 initializers and explicit
    zero points; biases stay float. Padding, means and clamps are rewritten to the operators that runtimes implement in
    integers. The model computes what the Network does, except for ``Style.narrow_codes``.

    Raises:
        EngineError: ONNX cannot express an operator or a quantizer; the message names it.
    """
    network, lstms = roll_lstms(network)
    model = export_graph(fit_biases(network) if style.integer_biases else network)
    graph = model.graph
    drop_no_ops(graph)
    fold_pads(graph)
    use_global_pooling(graph)
    if style.on_codes:
        propagate_quantizers(graph)
    bits = {n.name: int(n.meta["bits"]) for n in network.operators() if "bits" in n.meta}
    constants = Constants(graph)
    write_lstms(graph, constants, lstms)
    write_products(graph, constants)
    packed = style.packed and write_packed(graph, constants, bits, INT8 if style.int8_products else FLOAT)
    Writer(graph, constants, style, bits, {n.name: title(n) for n in network.operators()}).write()
    if style.guarded:
        guard_floats(graph, {n.name for n in network.operators() if n.meta.get("float")})
    drop_dead(graph)
    graph.opset_imports.clear()
    graph.opset_imports[""] = OPSET
    if lstms or packed:
        graph.opset_imports[MICROSOFT] = 1
    model.producer_name, model.producer_version = "tersor", None
    model.metadata_props.clear()
    for node in graph:
        for value in node.outputs:
            if not is_output(value):
                # Runtimes infer types and shapes, which would be a tenth of a small network's file.
                value.type, value.shape = None, None
    return ir.to_proto(model)


def write_onnx(model: onnx.ModelProto, folder: Path) -> tuple[str, ...]:
    """Write ``model.onnx`` to an existing folder; beyond 2 GB the tensors go to ``model.onnx.data``."""
    if model.ByteSize() < LIMIT:
        with whole_file(folder / FILE) as part:
            part.write_bytes(model.SerializeToString())
        return (FILE,)
    with whole_files(folder) as parts:
        onnx.save_model(model, str(parts / FILE), save_as_external_data=True, location=f"{FILE}.data")
    # Saving moved the tensors out of the model; load them back, since a copy would have doubled the memory.
    onnx.load_external_data_for_model(model, str(folder))
    return FILE, f"{FILE}.data"
