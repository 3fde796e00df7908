"""Apply a plan to the graph: integer weights, and quantizers on the edges."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from tersor.network.network import Network, add_tensor, finish, weight_node, weight_position
from tersor.network.roles import is_float_tensor
from tersor.network.sites import Plan, PlannedLayer, Site
from tersor.numerics import fakequant  # noqa: F401  (registers torch.ops.tersor)
from tersor.numerics.qtensor import QTensor, qparams
from tersor.policy import ARITHMETIC, AVERAGES, LAYERS

Range = tuple[Tensor | float, Tensor | float]

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def quantize_network(
    network: Network, plan: Plan, ranges: Mapping[str, Range], weights: Mapping[str, QTensor]
) -> Network:
    """The network with the plan's quantizers; weights become codes that are dequantized where they are read.

    Args:
        ranges: (low, high) of every group of activation sites, by group name.
        weights: the solution of every weight site, by the site's node.
    """
    network = network.edit()
    nodes = {n.name: n for n in network.graph.nodes}
    shared: dict[tuple[str, str], list[str]] = {}
    floats = {layer.node for layer in plan.layers if layer.planned == "fp32" and layer.weight_format is None}
    for site in plan.activations():
        _insert_quantizer(network, nodes[site.node], site, ranges[site.group], shared, plan.raw, floats)
    stored: dict[tuple[str, str], fx.Node] = {}
    for site in plan.weights():
        _insert_weight(network, nodes[site.node], site, weights[site.node], stored)
    made: dict[tuple[str, str], fx.Node] = {}
    for site in plan.runtime():
        _insert_runtime(network, nodes[site.node], site, plan.runtime_group, made)
    for layer in plan.layers:
        if layer.weight_format in _HALF:
            _store_half(network, nodes[layer.node], layer, stored)
        if layer.planned in _HALF:
            _compute_half(network, nodes[layer.node], layer)
        elif layer.planned == "fp32" and layer.op in LAYERS | ARITHMETIC | AVERAGES:
            nodes[layer.node].meta["float"] = True
    return finish(network)


def _insert_quantizer(
    network: Network,
    node: fx.Node,
    site: Site,
    bounds: Range,
    shared: dict[tuple[str, str], list[str]],
    raw: frozenset[str],
    floats: set[str],
) -> None:
    spec = site.spec
    key = (site.group, str(spec))
    if key not in shared:
        parameters = zip(("scale", "zero_point"), qparams(*bounds, spec), strict=True)
        shared[key] = [add_tensor(network, f"quantizers.{site.group}.{kind}", t) for kind, t in parameters]
    users = [u for u in node.users if u.name not in raw]
    if node.op == "placeholder":  # which remains in float for all others
        users = [u for u in users if u.op != "output" and u.name not in floats]
    last_input = [n for n in network.graph.nodes if n.op == "placeholder"][-1]
    with network.graph.inserting_before((last_input if node.op == "placeholder" else node).next):
        scale, zero_point = (network.graph.get_attr(name) for name in shared[key])
        if spec.format.kind == "float" or spec.format.name == "binary":
            call, args = torch.ops.tersor.cast.default, (node, spec.format.name, scale)
        else:
            call = torch.ops.tersor.fake_quantize.default
            args = (node, scale, zero_point, spec.low, spec.high, spec.block)
        quantizer = network.graph.create_node("call_function", call, args, {}, f"{node.name}_quantized")
    quantizer.meta.update(val=node.meta.get("val"), title=site.name, quantizer=True)
    for user in users:
        user.replace_input_with(node, quantizer)


def _insert_runtime(
    network: Network, layer: fx.Node, site: Site, block: int, made: dict[tuple[str, str], fx.Node]
) -> None:
    source = layer.args[0]
    assert isinstance(source, fx.Node)
    key = (source.name, str(site.spec))
    if key not in made:
        with network.graph.inserting_before(layer):
            call, args = torch.ops.tersor.quantize_rows.default, (source, site.spec.high, block)
            if site.spec.granularity.kind == "tensor":
                call, args = torch.ops.tersor.quantize_whole.default, (source, site.spec.high)
            made[key] = network.graph.create_node("call_function", call, args, {}, f"{source.name}_quantized")
        made[key].meta.update(val=source.meta.get("val"), title=site.name, quantizer=True)
    layer.update_arg(0, made[key])


def _insert_weight(
    network: Network, layer: fx.Node, site: Site, weight: QTensor, stored: dict[tuple[str, str], fx.Node]
) -> None:
    source = weight_node(layer)
    assert source is not None
    key = (str(source.target), str(site.spec))
    if key not in stored:
        name = str(source.target)
        tensors = (("codes", weight.codes), ("scale", weight.scale), ("zero_point", weight.zero_point))
        names = [add_tensor(network, f"{name}_{kind}", t) for kind, t in tensors]
        with network.graph.inserting_before(_first_reader(source)):
            parts = tuple(network.graph.get_attr(n) for n in names)
            call = torch.ops.tersor.dequantize.default
            args = (*parts, site.spec.block)
            node = network.graph.create_node("call_function", call, args, {}, f"{source.name}_dequantized")
        bits = site.spec.format.bits
        node.meta.update(val=source.meta.get("val"), title=site.name, quantizer=True, bits=bits)
        stored[key] = node
    layer.update_arg(weight_position(layer), stored[key])


def _first_reader(node: fx.Node) -> fx.Node:
    order = {n: k for k, n in enumerate(node.graph.nodes)}
    return min(node.users, key=order.__getitem__)


def _store_half(
    network: Network, layer: fx.Node, planned: PlannedLayer, stored: dict[tuple[str, str], fx.Node]
) -> None:
    """Store the weight of a layer kept in half precision in that format."""
    source, format = weight_node(layer), str(planned.weight_format)
    if source is None:
        return
    key = (str(source.target), format)
    if key not in stored:
        half = network.tensor(source).to(_HALF[format])
        with network.graph.inserting_before(_first_reader(source)):
            kept = network.graph.get_attr(add_tensor(network, f"{source.target}_{format}", half))
            stored[key] = _cast(network, kept, torch.float32, f"{source.name}_widened", planned)
        stored[key].meta.update(val=source.meta.get("val"))
    layer.update_arg(weight_position(layer), stored[key])


def _compute_half(network: Network, node: fx.Node, planned: PlannedLayer) -> None:
    """Cast the float inputs of an operator kept in half precision to that format, and its output to float32."""
    half = _HALF[planned.planned]
    with network.graph.inserting_before(node):
        for source in [n for n in node.all_input_nodes if is_float_tensor(n)]:
            narrow = _cast(network, source, half, f"{source.name}_{planned.planned}", planned)
            node.replace_input_with(source, narrow)
    # A softmax may have its computation type as an argument.
    node.args, node.kwargs = map_aggregate((node.args, node.kwargs), lambda a: half if a is torch.float32 else a)
    node.meta["half"] = planned.planned
    users = list(node.users)
    with network.graph.inserting_after(node):
        widened = _cast(network, node, torch.float32, f"{node.name}_widened", planned)
    for user in users:
        user.replace_input_with(node, widened)


def _cast(network: Network, source: fx.Node, dtype: torch.dtype, name: str, planned: PlannedLayer) -> fx.Node:
    call = torch.ops.aten.to.dtype
    node = network.graph.create_node("call_function", call, (source, dtype), {}, name)
    node.meta.update(val=source.meta.get("val"), title=planned.name, quantizer=True)
    return node


def is_quantizer(node: fx.Node) -> bool:
    """Whether this module inserted the node."""
    return bool(node.meta.get("quantizer"))
