"""The precision of every operator in a compiled OpenVINO model, as OpenVINO reports it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tersor.engines.base import Executed
from tersor.engines.openvino.fallbacks import reason

_ACCOUNT = ("layerType", "runtimePrecision", "originalLayersNames", "primitiveType")
_PRECISIONS = {
    "f32": "fp32",
    "bf16": "bf16",
    "f16": "fp16",
    "u8": "int8",
    "i8": "int8",
    "u4": "int4",
    "i4": "int4",
}


def account(model: Any, compiled: Any, runtime: bool) -> list[Executed]:
    """Every operator of the runtime model with its precision; operators that depend on no input are omitted.

    The note of an operator in float is the OpenVINO rule responsible, if known.

    Args:
        model: the openvino.Model that was compiled, with our node names.
        compiled: its runtime model.
        runtime: whether its layers quantize their inputs at run time.
    """
    rows: list[Executed] = []
    # A product reports its compressed weight, but not whether it quantizes its input at run time.
    named_after = ("Subgraph", "Eltwise", "Deconvolution", *(() if runtime else ("FullyConnected",)))
    constant: set[str] = set()
    for op in compiled.get_ordered_ops():
        info = {k: str(v.astype(str)) for k, v in op.get_rt_info().items() if k in _ACCOUNT}
        kind, name = info.get("layerType", ""), op.get_friendly_name()
        sources = [port.get_source_output().get_node().get_friendly_name() for port in op.inputs()]
        if kind == "Const" or (sources and all(s in constant for s in sources)):
            constant.add(name)
        elif kind not in ("Input", "Output", "Parameter", "Result"):
            precision = _PRECISIONS.get(info.get("runtimePrecision", ""), "fp32")
            # Generated elementwise code reports its output precision, and a transposed convolution in float that of
            # its weight; the primitive's type gives the arithmetic's.
            if kind in named_after and info.get("primitiveType", "").lower().endswith("f32"):
                precision = "fp32"
            parts = [n for n in info.get("originalLayersNames", "").split(",") if n]
            rows.append(Executed(name, kind, precision, tuple(parts)))
    operators = {op.get_friendly_name(): op for op in model.get_ordered_ops()}
    return [_under_our_names(_explained(row, operators)) for row in _with_products(operators, rows)]


def _explained(row: Executed, operators: Mapping[str, Any]) -> Executed:
    in_float = row.precision in ("fp32", "bf16", "fp16")
    merged = [operators[n] for n in row.nodes if n in operators]
    return replace(row, note=reason(merged)) if in_float else row


def _under_our_names(row: Executed) -> Executed:
    nodes = dict.fromkeys(filter(None, (n.split("/")[0] for n in row.nodes)))
    return replace(row, nodes=tuple(nodes))


def _with_products(operators: Mapping[str, Any], rows: list[Executed]) -> list[Executed]:
    """The rows, with the names of matrix products restored that were lost in fusions."""
    named = {n for row in rows for n in row.nodes}
    lost = {n for n, op in operators.items() if op.get_type_name() == "MatMul"} - named
    found = []
    for row in rows:
        merged = [operators[n] for n in row.nodes if n in operators]
        if row.op == "FullyConnected" and lost and merged:
            product = _nearest(merged[0], lost, _behind) or _nearest(merged[0], lost, _ahead)
            if product is not None:
                lost.discard(product)
                row = replace(row, nodes=(product, *row.nodes))
        found.append(row)
    return found


def _nearest(start: Any, lost: set[str], neighbours: Callable[[Any], list[Any]]) -> str | None:
    """The nearest of the ``lost`` products in one direction, stopping at other products."""
    seen, front = set(), [start]
    while front:
        following = []
        for op in front:
            name = op.get_friendly_name()
            if name in lost:
                return name
            if name not in seen and (op is start or op.get_type_name() != "MatMul"):
                seen.add(name)
                following += neighbours(op)
        front = following
    return None


def _behind(op: Any) -> list[Any]:
    return [port.get_source_output().get_node() for port in op.inputs()]


def _ahead(op: Any) -> list[Any]:
    return [port.get_node() for output in op.outputs() for port in sorted(output.get_target_inputs(), key=_name)]


def _name(port: Any) -> str:
    return str(port.get_node().get_friendly_name())
