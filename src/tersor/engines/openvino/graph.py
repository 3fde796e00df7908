"""The Network's graph in the operators that OpenVINO's frontend reads, under our node names."""

import operator
from typing import Any

from torch import fx

from tersor.engines.openvino.spelling import FIRST, batch_size, spelled
from tersor.network.export import exported
from tersor.network.network import Network, argument, op_name
from tersor.process import quiet

# Separates our node's name from the converter's; names of in-place operators already contain two underscores.
MARK = "__tersor__"


def readable(network: Network) -> fx.GraphModule:
    """A module of operators that OpenVINO's frontend reads, each named after our node, MARK and its own name."""
    edited = network.edit()
    graph, operators = edited.graph, edited.operators()
    batch = batch_size(graph) if any(op_name(n) == "flatten" for n in operators) else None
    for node in operators:
        if _returns_input(node):  # unknown to the frontend
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            graph.erase_node(node)
            continue
        call = spelled(node, batch)
        if call is None:
            return decomposed(network)
        node.target, node.args, node.kwargs = call
        node._rename(f"{node.name}{MARK}{node.name}")
        if node.target in FIRST:
            _take_first(node)
    edited.module.recompile()
    return edited.module


def _take_first(node: fx.Node) -> None:
    with node.graph.inserting_after(node):
        first = node.graph.call_function(operator.getitem, (node, 0))
    first.meta.update(node.meta)
    node.replace_all_uses_with(first, delete_user_cb=lambda user: user is not first)
    first._rename(f"{node.name}_first")


def _returns_input(node: fx.Node) -> bool:
    """Whether an operator only returns its input, such as a dropout that the model switches off."""
    return op_name(node) == "contiguous" or (op_name(node) == "dropout" and not argument(node, 2, "train"))


def decomposed(network: Network) -> fx.GraphModule:
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
    """The Network's name of a node, which export and decomposition each renamed."""
    while sources[-1].from_node:
        sources = sources[-1].from_node
    return str(sources[-1].name)
