"""Keep operators in float that ONNX Runtime would compute in integers, whatever the options of its session.

A default session quantizes the float weight of a layer between a dequantizer and a quantizer, and computes other
operators there in integers. A Sum with a single input changes nothing, and no optimizer looks through it.
"""

from collections.abc import Collection

import onnx_ir as ir

_WEIGHTED = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1}


def guard_floats(graph: ir.Graph, floats: Collection[str]) -> None:
    """Separate the float operators from the dequantizers before them.

    Args:
        floats: the names of operators that are planned in float.
    """
    for node in list(graph):
        if node.op_type in _WEIGHTED:
            guarded = not _dequantized(node.inputs[_WEIGHTED[node.op_type]])
        else:
            guarded = node.name in floats
        position = next((k for k, x in enumerate(node.inputs) if _dequantized(x)), None) if guarded else None
        if position is not None:
            name = f"{node.name}/float"
            guard = ir.node("Sum", [node.inputs[position]], name=name)
            guard.outputs[0].name = name
            graph.insert_before(node, guard)
            node.replace_input_with(position, guard.outputs[0])


def _dequantized(value: ir.Value | None) -> bool:
    maker = None if value is None else value.producer()
    return maker is not None and maker.op_type == "DequantizeLinear"
