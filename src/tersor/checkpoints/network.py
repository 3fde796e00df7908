"""A Network as two files: the graph as JSON, tensors as safetensors. Loading executes and unpickles nothing."""

import json
import math
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx

from tersor.checkpoints.stored import assemble
from tersor.checkpoints.tensors import save_tensors
from tersor.errors import SavedFolderError
from tersor.files import write_text
from tersor.network.network import Network, finish
from tersor.numerics import QTensor, fakequant  # noqa: F401  (registers torch.ops.tersor)
from tersor.numerics.packing import pack, unpack

FILES = ("network.json", "network.safetensors")
FORMAT = 1

_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_PYTHON = {
    f"operator.{f.__name__}": f
    for f in (
        operator.getitem,
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.truediv,
        operator.mod,
        operator.neg,
    )
}
# Would read a file from a path given in the graph.
_REFUSED = {"aten.from_file.default"}


def write(network: Network, folder: Path) -> tuple[str, ...]:
    """Write the network to an existing folder and return the file names.

    Codes of fewer than 8 bits are packed; unused tensors are omitted.
    """
    packed = {str(n.all_input_nodes[0].target): n.meta["bits"] for n in network.operators() if "bits" in n.meta}
    tensors, layout = {}, {}
    for name, tensor in network.tensors():
        layout[name] = {"shape": list(tensor.shape), "dtype": _dtype_name(tensor.dtype)}
        if packed.get(name, 8) < 8:
            layout[name]["bits"] = packed[name]
            tensor = pack(tensor, packed[name])
        tensors[name] = tensor.detach().contiguous().clone()
    graph = {
        "format": FORMAT,
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
    write_text(folder / FILES[0], json.dumps(graph, separators=(",", ":")))
    save_tensors(tensors, folder / FILES[1])
    return FILES


def read(folder: Path) -> Network:
    """Read a network that ``write`` wrote.

    Raises:
        SavedFolderError: content is missing, altered or not allowed; the message names it and the file.
    """
    path = folder / FILES[0]
    try:
        data = json.loads(path.read_text(encoding="utf8"))
        tensors = load_file(folder / FILES[1])
    except (OSError, ValueError, SafetensorError) as error:
        raise SavedFolderError(
            f"{path.parent}: the network cannot be read ({error}): save it again"
        ) from error
    try:
        return _network(data, tensors)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, SyntaxError) as error:
        raise SavedFolderError(
            f"{path}: not a network that Tersor wrote ({type(error).__name__}: {error})"
        ) from error


def read_weights(folder: Path) -> Iterator[tuple[str, QTensor]]:
    """(name, QTensor) of every weight that the network stores as codes.

    Raises:
        SavedFolderError, CheckpointError: as ``read``; or the parts of a weight do not belong together.
    """
    network = read(folder)
    for node in network.operators():
        if node.target is torch.ops.tersor.dequantize.default:
            codes, scale, zero_point = (network.tensor(part) for part in node.all_input_nodes[:3])
            name = re.sub(r"[._]codes(_\d+)?$", "", str(node.all_input_nodes[0].target))
            bits = int(node.meta.get("bits", 8 * codes.dtype.itemsize))
            yield name, assemble(name, codes, scale, zero_point, int(node.args[3]), bits)  # type: ignore[arg-type]


def _network(data: dict[str, Any], tensors: dict[str, Tensor]) -> Network:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']}, this version reads {FORMAT}")
    for name, layout in data["tensors"].items():
        _checked_name(name)
        if "bits" in layout:
            count, dtype = math.prod(layout["shape"]), _dtype(layout["dtype"])
            codes = unpack(tensors[name], layout["bits"], count, dtype.is_signed)
            tensors[name] = codes.to(dtype).reshape(layout["shape"])
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for item in data["nodes"]:
        node = _create_node(graph, item, nodes)
        node.meta.update(item.get("meta", {}))
        nodes[item["name"]] = node
    example = tuple(torch.zeros(i["shape"], dtype=_dtype(i["dtype"])) for i in data["inputs"])
    names = tuple(i["name"] for i in data["inputs"])
    module = fx.GraphModule(tensors, graph)
    free = tuple({int(dim): str(name) for dim, name in dims.items()} for dims in data.get("free", ()))
    names_out, keywords, dynamic = tuple(data["outputs"]), data["keywords"], data["dynamic_batch"]
    return finish(Network(module, names, names_out, example, keywords, dynamic, free=free))


def _node(node: fx.Node) -> dict[str, Any]:
    item: dict[str, Any] = {"name": node.name, "op": node.op}
    if node.op == "call_function":
        item["target"] = _target_name(node.target)
    elif node.op != "output":
        item["target"] = str(node.target)
    if node.args:
        item["args"] = _encode(node.args)
    if node.kwargs:
        item["kwargs"] = _encode(node.kwargs)
    meta = {k: node.meta[k] for k in ("title", "quantizer", "bits", "half", "float") if k in node.meta}
    return {**item, "meta": meta} if meta else item


def _create_node(graph: fx.Graph, item: dict[str, Any], nodes: dict[str, fx.Node]) -> fx.Node:
    name, op = _checked_name(item["name"]), item["op"]
    args, kwargs = _decode(item.get("args", []), nodes), _decode(item.get("kwargs", {}), nodes)
    if op == "call_function":
        return graph.create_node(
            op, _target(item["target"]), tuple(args), {_checked_name(k): v for k, v in kwargs.items()}, name
        )
    if op in ("placeholder", "get_attr"):
        return graph.create_node(op, _checked_name(item["target"]), (), {}, name)
    if op == "output":
        return graph.output(tuple(args[0]))
    raise ValueError(f"node {name} has the unknown kind {op!r}")


def _target_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return f"operator.{target.__name__}"


def _target(text: str) -> Any:
    """The operator of that name: Python arithmetic, Tersor's operators, or ATen operators without side effects."""
    if text in _PYTHON:
        return _PYTHON[text]
    namespace, name, overload = text.split(".")
    if namespace not in ("aten", "tersor") or text in _REFUSED:
        raise ValueError(f"operator {text} is not allowed")
    found = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    if not isinstance(found, torch._ops.OpOverload) or found._schema.is_mutable:
        raise ValueError(f"operator {text} is not allowed: it modifies its inputs")
    return found


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


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    if not value:
        return {}
    (kind, inner), *rest = value.items()
    if rest:
        raise ValueError(f"an argument has the unexpected keys {list(value)}")
    if kind == "node":
        return nodes[inner]
    if kind == "dict":
        return {k: _decode(v, nodes) for k, v in inner.items()}
    if kind == "dtype":
        return _dtype(inner)
    if kind == "device":
        return torch.device(inner)
    if kind == "float":
        return float(inner)
    if kind == "torch" and isinstance(
        found := getattr(torch, _checked_name(inner)), (torch.layout, torch.memory_format)
    ):
        return found
    raise ValueError(f"an argument has the unknown kind {kind!r}")


def _checked_name(text: str) -> str:
    # Names are inserted into generated code, so nothing but identifiers may pass.
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise ValueError(f"invalid name {text!r}")
    return text


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return found
