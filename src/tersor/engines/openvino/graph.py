"""The Network's graph in the operators that OpenVINO's frontend reads, under our node names."""

from typing import Any

from torch import fx

from tersor.engines.program import exported
from tersor.network.network import Network, argument, op_name
from tersor.process import quiet

# Between our node's name and the converter's; names of in-place operators hold two underscores of their own.
MARK = "__tersor__"
# Read as they stand. Exporting again and decomposing takes minutes where a recurrent layer is written out in steps.
_PLAIN = frozenset(
    "linear embedding add sub mul sigmoid tanh relu softmax sum select split getitem stack cat unsqueeze slice zeros "
    "zeros_like sym_size full argmax arange index contiguous quantize_rows dequantize".split()
)


def readable(network: Network) -> fx.GraphModule:
    """A module of operators that OpenVINO's frontend knows, named by our node, MARK and a name of their own."""
    if not all(_is_plain(n) for n in network.operators()):
        return _decomposed(network)
    network = network.edit()
    for node in network.operators():
        if op_name(node) == "contiguous":  # of which the frontend knows nothing
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            network.graph.erase_node(node)
        else:
            node._rename(f"{node.name}{MARK}{node.name}")
    network.module.recompile()
    return network.module


def _is_plain(node: fx.Node) -> bool:
    """Whether the frontend reads an operator as it stands: of splits, those into equal parts."""
    if op_name(node) != "split":
        return op_name(node) in _PLAIN
    size, length = node.args[1], node.args[0].meta["val"].shape[argument(node, 2, "dim", 0)]  # type: ignore[union-attr]
    return isinstance(size, int) and isinstance(length, int) and length % size == 0


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
