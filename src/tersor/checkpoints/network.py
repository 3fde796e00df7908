"""A Network as two files: the graph as JSON, tensors as safetensors. Loading does not execute or unpickle anything."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, fx

from tersor.checkpoints.foreign.files import checked, foreign, inside, read_object
from tersor.checkpoints.graph.allowed import name_of, operator_of
from tersor.checkpoints.graph.building import build
from tersor.checkpoints.graph.schema import DTYPES, PLACES, Graph, Layout, Stored, check_stored, same_inputs
from tersor.checkpoints.graph.sizes import check_sizes
from tersor.checkpoints.sparse.storage import Stored as Sparse
from tersor.checkpoints.sparse.storage import read as read_sparse
from tersor.checkpoints.sparse.storage import smallest
from tersor.checkpoints.stored import assemble
from tersor.checkpoints.tensors import save_tensors
from tersor.errors import SavedFolderError
from tersor.files import write_text
from tersor.network.network import Network, finish
from tersor.network.quantized import graph as _registers_its_operator  # noqa: F401
from tersor.numerics import QTensor, fakequant  # noqa: F401  (registers torch.ops.tersor)
from tersor.numerics.packing import pack, unpack

FILES = ("network.json", "network.safetensors")
# The format of networks without zeros, which all versions read, and that of networks that are stored without theirs.
FORMAT, SPARSE = 1, 2


def write(network: Network, folder: Path) -> tuple[str, ...]:
    """Write the network to an existing folder and return the file names.

    Codes of fewer than 8 bits are packed; unused tensors are omitted, and so are zeros where that is smaller.

    Raises:
        SavedFolderError: ``read`` would reject it; in that case nothing is written.
    """
    if reason := unsaveable(network):
        raise SavedFolderError(f"the network cannot be saved: {reason}")
    packed = {str(n.all_input_nodes[0].target): n.meta["bits"] for n in network.operators() if "bits" in n.meta}
    tensors, layout = {}, {}
    for name, tensor in network.tensors():
        layout[name] = {"shape": list(tensor.shape), "dtype": _dtype_name(tensor.dtype)}
        bits = packed.get(name, 8)
        if bits < 8:
            layout[name]["bits"] = bits
        if (sparse := smallest(tensor, bits)) is not None:
            layout[name]["sparse"], (tensor, tensors[name + PLACES]) = sparse
        elif bits < 8:
            tensor = pack(tensor, bits)
        tensors[name] = tensor.detach().contiguous().clone()
    graph = {
        "format": SPARSE if any("sparse" in part for part in layout.values()) else FORMAT,
        "inputs": [
            {"name": n, "shape": list(x.shape), "dtype": _dtype_name(x.dtype)}
            for n, x in zip(network.input_names, network.example, strict=True)
        ],
        "outputs": list(network.output_names),
        "keywords": network.keywords,
        "dynamic_batch": network.dynamic_batch,
        "free": [{str(dim): name for dim, name in dims.items()} for dims in network.free],
        "tensors": layout,
        "nodes": [_node(n) for n in network.graph.nodes],
    }
    text = json.dumps(graph, separators=(",", ":"))
    what = "the network cannot be saved so that it is read back"
    checked(Graph, json.loads(text), what, SavedFolderError, "rename what it names, or compress for another engine")
    write_text(folder / FILES[0], text)
    save_tensors(tensors, folder / FILES[1])
    return FILES


def read(folder: Path) -> Network:
    """Read a network that ``write`` wrote.

    Raises:
        SavedFolderError: content is missing, altered or not allowed; the message names it and the file.
    """
    path = inside(folder, FILES[0], SavedFolderError)
    remedy = f"not a network that Tersor wrote: save it again ({folder})"
    data = read_object(path, SavedFolderError, remedy)
    if data.get("format") not in (FORMAT, SPARSE):
        raise SavedFolderError(
            f"{path} has the format {data.get('format')!r:.40}, this version reads {FORMAT} and {SPARSE}"
        )
    graph = checked(Graph, data, str(path), SavedFolderError, remedy)
    with _opened(inside(folder, FILES[1], SavedFolderError)) as file, foreign(
        SavedFolderError, f"{path}: not a network that Tersor wrote", "save it again"
    ):
        check_stored(graph, _stored(file))
        network = _network(graph, {name: _tensor(file, name, layout) for name, layout in graph.tensors.items()})
        check_sizes(network)
        return network


def unsaveable(network: Network) -> str | None:
    """Why ``read`` would reject an operator of the network, or None."""
    for node in network.operators():
        try:
            operator_of(name_of(node.target))
        except ValueError as error:
            return f"{node.meta.get('title', node.name)}: {error}"
    return None


def _opened(path: Path) -> Any:
    with foreign(SavedFolderError, f"{path} cannot be read", "save the network again"):
        return safe_open(str(path), framework="pt")


def _stored(file: Any) -> Stored:
    parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    unknown = next((name for name, part in parts.items() if part.get_dtype() not in _STORED), None)
    if unknown is not None:
        raise ValueError(f"{unknown} has the dtype {parts[unknown].get_dtype()}")
    return {name: (tuple(part.get_shape()), _STORED[part.get_dtype()]) for name, part in parts.items()}


def read_weights(folder: Path) -> Iterator[tuple[str, QTensor]]:
    """(name, QTensor) of every weight that the network stores as codes.

    Raises:
        SavedFolderError, CheckpointError: as ``read``; or the parts of a weight do not match.
    """
    network = read(folder)
    with foreign(SavedFolderError, f"{folder / FILES[0]}: a weight is damaged", "save the network again"):
        for node in network.operators():
            if node.target is torch.ops.tersor.dequantize.default:
                codes, scale, zero_point = (network.tensor(part) for part in node.all_input_nodes[:3])
                name = re.sub(r"[._]codes(_\d+)?$", "", str(node.all_input_nodes[0].target))
                bits = int(node.meta.get("bits", 8 * codes.dtype.itemsize))
                yield name, assemble(name, codes, scale, zero_point, int(node.args[3]), bits)  # type: ignore[arg-type]


def _tensor(file: Any, name: str, layout: Layout) -> Tensor:
    """A tensor as the graph reads it."""
    tensor, dtype, bits = file.get_tensor(name), DTYPES[layout.dtype], layout.packed_bits
    if layout.sparse is not None:
        stored = Sparse(tensor, file.get_tensor(name + PLACES))
        return read_sparse(layout.sparse, stored, tuple(layout.shape), dtype, bits)
    if bits < 8:
        tensor = unpack(tensor, bits, math.prod(layout.shape), dtype.is_signed).to(dtype).reshape(layout.shape)
    return tensor


def _network(graph: Graph, tensors: dict[str, Tensor]) -> Network:
    if not same_inputs(graph):
        raise ValueError("it has other inputs than its graph")
    made = build(graph)
    example = tuple(torch.zeros(i.shape, dtype=DTYPES[i.dtype]) for i in graph.inputs)
    names = tuple(i.name for i in graph.inputs)
    free = tuple({int(dim): name for dim, name in dims.items()} for dims in graph.free)
    module = fx.GraphModule(tensors, made)
    return finish(Network(module, names, tuple(graph.outputs), example, graph.keywords, graph.dynamic_batch, free=free))


def _node(node: fx.Node) -> dict[str, Any]:
    item: dict[str, Any] = {"name": node.name, "op": node.op}
    if node.op == "call_function":
        item["target"] = name_of(node.target)
    elif node.op != "output":
        item["target"] = str(node.target)
    if node.args:
        item["args"] = _encode(node.args)
    if node.kwargs:
        item["kwargs"] = _encode(node.kwargs)
    meta = {k: node.meta[k] for k in ("title", "quantizer", "bits", "half", "float") if k in node.meta}
    return {**item, "meta": meta} if meta else item


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, torch.dtype):
        return {"dtype": _dtype_name(value)}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if isinstance(value, (torch.layout, torch.memory_format)):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, (list, tuple)):
        return [_encode(v) for v in value]
    if isinstance(value, dict):
        return {"dict": {k: _encode(v) for k, v in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise SavedFolderError(
        f"the graph holds a {type(value).__name__} ({value!r}), which cannot be saved: please report it"
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# dtype names in safetensors.
_STORED = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
