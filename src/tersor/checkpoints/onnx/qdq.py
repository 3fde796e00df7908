"""A quantized Network as an explicit QDQ ONNX file: integer initializers, every weight stored once."""

from pathlib import Path

import onnx
import onnx_ir as ir

from tersor.checkpoints.onnx.constants import Constants
from tersor.checkpoints.onnx.graph import OPSET, export_graph
from tersor.checkpoints.onnx.lstm import MICROSOFT, rolled, write_lstms
from tersor.checkpoints.onnx.nbits import FLOAT, INT8, write_packed
from tersor.checkpoints.onnx.products import write_products
from tersor.checkpoints.onnx.quantizers import Style, Writer
from tersor.checkpoints.onnx.rewrites import (
    drop_dead,
    drop_idle_nodes,
    fold_pads,
    is_output,
    pool_globally,
    quantize_moves,
)
from tersor.network.corrections.int32_bias import fit_biases
from tersor.network.network import Network

FILE = "model.onnx"
# Protobuf's own limit is 2 GiB for a message.
LIMIT = 2**31 - 2**20


def to_onnx(network: Network, style: Style = Style()) -> onnx.ModelProto:  # noqa: B008  (frozen)
    """The quantized Network as an ONNX model of opset 21.

    Quantizers become QuantizeLinear and DequantizeLinear with uint8, int8, int16 or int4 initializers and
    zero points always written; biases stay float. Padding, means and clamps take the form that runtimes have
    in integers. But for ``Style.narrow_codes`` the model computes what the Network does.

    Raises:
        EngineError: where ONNX cannot express an operator or a quantizer, naming it.
    """
    network, lstms = rolled(network)
    model = export_graph(fit_biases(network) if style.integer_biases else network)
    graph = model.graph
    drop_idle_nodes(graph)
    fold_pads(graph)
    pool_globally(graph)
    if style.on_codes:
        quantize_moves(graph)
    bits = {n.name: int(n.meta["bits"]) for n in network.operators() if "bits" in n.meta}
    constants = Constants(graph)
    write_lstms(graph, constants, lstms)
    write_products(graph, constants)
    packed = style.packed and write_packed(graph, constants, bits, INT8 if style.int8_products else FLOAT)
    Writer(graph, constants, style, bits).write()
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
                # Runtimes infer them; in small networks they would be a tenth of the file.
                value.type, value.shape = None, None
    return ir.to_proto(model)


def write_onnx(model: onnx.ModelProto, folder: Path) -> tuple[str, ...]:
    """Write ``model.onnx`` into an existing folder, and ``model.onnx.data`` beside it beyond 2 GB."""
    if model.ByteSize() < LIMIT:
        (folder / FILE).write_bytes(model.SerializeToString())
        return (FILE,)
    onnx.save_model(model, str(folder / FILE), save_as_external_data=True, location=f"{FILE}.data")
    # Saving so took the tensors out of the model; a copy of it would have taken as much memory again.
    onnx.load_external_data_for_model(model, str(folder))
    return FILE, f"{FILE}.data"
