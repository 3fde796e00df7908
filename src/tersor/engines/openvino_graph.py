"""The Network's graph in the operators that OpenVINO's frontend reads, under our node names."""

from typing import Any

from torch import fx

from tersor.engines.program import exported
from tersor.network.explain import quiet
from tersor.network.network import Network, op_name

# Between our node's name and the converter's; names of in-place operators hold two underscores of their own.
MARK = "__tersor__"
# Read as they stand. Exporting again and decomposing takes minutes where a recurrent layer is written out in steps.
_PLAIN = frozenset(
    "linear embedding add sub mul sigmoid tanh relu softmax sum select split getitem stack cat unsqueeze slice zeros "
    "zeros_like sym_size full argmax arange index contiguous quantize_rows dequantize".split()
)


def readable(network: Network) -> fx.GraphModule:
    """A module of operators that OpenVINO's frontend knows, named by our node, MARK and a name of their own."""
    if all(op_name(n) in _PLAIN for n in network.operators()):
        module = network.edit().module
        for node in module.graph.nodes:
            if node.op == "call_function":
                node._rename(f"{node.name}{MARK}{node.name}")
        module.recompile()
        return module
    return _decomposed(network)


def _decomposed(network: Network) -> fx.GraphModule:
    """The graph in the operators that OpenVINO's frontend reads, under our node names."""
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
    from torch.export.decomp_utils import CustomDecompTable

    table = CustomDecompTable()
    for op in ops_to_not_decompose():
        if op in table:
            table.pop(op)
    program = exported(network)
    with quiet():
        program = program.run_decompositions(table)
    origin = {n.name: _origin(n.meta["from_node"]) for n in program.graph.nodes if n.meta.get("from_node")}
    module = program.module(check_guards=False)
    for node in module.graph.nodes:
        if node.op == "call_function" and node.name in origin:
            node._rename(f"{origin[node.name]}{MARK}{node.name}")
    module.recompile()
    return module


def _origin(sources: list[Any]) -> str:
    """The Network's name of a node: exporting and decomposing each gave it one of their own."""
    while sources[-1].from_node:
        sources = sources[-1].from_node
    return str(sources[-1].name)
