"""Biases as integer engines store them: int32, with input scale × weight scale."""

import torch
from torch import Tensor, fx

from tersor.network.network import CONVOLUTIONS, LINEARS, Network, add_tensor, bias_node, finish, op_name
from tersor.numerics import fakequant  # noqa: F401  (registers torch.ops.tersor)
from tersor.policy import TRANSPARENT

# Half of int32; the other half is headroom for the sum that the bias is added to.
LIMIT = 2.0**30


def fit_biases(network: Network) -> Network:
    """Round every bias of an integer layer to a multiple of input scale × weight scale, as stored in int32.

    Integer engines do this silently; done here, the simulation matches them. They also clip a bias that does not fit in
    int32 (of a dead channel, whose weights are tiny relative to its bias): here the channel's weight scale is increased
    until it fits, and its codes are rounded to that scale, with an error of at most |bias|·inputs/2²².
    Layers whose input is not quantized per tensor, or whose weight's scale is neither per tensor nor per output, are
    unchanged. The function is idempotent.
    """
    network = network.edit()
    for layer in network.operators():
        bias = bias_node(layer)
        if layer.target not in CONVOLUTIONS + LINEARS or bias is None:
            continue
        source, weight = _quantizer(layer.args[0]), layer.args[1]
        if source is not None and _is(weight, torch.ops.tersor.dequantize.default):
            _fit(network, layer, source, weight, bias)  # type: ignore[arg-type]
    return finish(network)


def _quantizer(node: object) -> fx.Node | None:
    """The quantizer of a value, looking through operators that only move values, or None."""
    if not isinstance(node, fx.Node) or _is(node, torch.ops.tersor.fake_quantize.default):
        return node if isinstance(node, fx.Node) else None
    if node.op != "call_function" or op_name(node) not in TRANSPARENT:
        return None
    quantizers = [_quantizer(s) for s in node.all_input_nodes if isinstance(s.meta.get("val"), Tensor)]
    steps = {q.args[1].target if q is not None else None for q in quantizers}  # type: ignore[union-attr]
    return quantizers[0] if len(steps) == 1 else None


def _is(node: object, target: object) -> bool:
    return isinstance(node, fx.Node) and node.target is target


def _fit(
    network: Network,
    layer: fx.Node,
    source: fx.Node,
    weight: fx.Node,
    bias: fx.Node,
) -> None:
    step, scale = (network.tensor(n.args[1]).double() for n in (source, weight))  # type: ignore[arg-type]
    value = network.tensor(bias)
    outputs = value.numel()
    if step.numel() != 1 or (scale.numel() != 1 and (scale.shape[0], scale.numel()) != (outputs, outputs)):
        return
    needed = value.double().abs() / (LIMIT * step.reshape(()))
    if scale.numel() == 1:
        needed = needed.max()
    needed = needed.reshape(scale.shape)
    # The margin ignores the rounding of a scale that was raised before.
    raised = torch.where(needed > scale * (1 + 1e-6), needed, scale).float()
    if (raised > scale).any() and len(weight.users) == 1:
        _raise(network, weight, scale, raised)
        scale = raised.double()
    unit = step.reshape(()) * scale.reshape(-1)
    rounded = (torch.round(value.double() / unit) * unit).to(value.dtype)
    if not torch.equal(rounded, value):
        with network.graph.inserting_before(layer):
            layer.update_arg(2, network.graph.get_attr(add_tensor(network, f"{bias.target}_int32", rounded)))


def _raise(network: Network, weight: fx.Node, scale: Tensor, raised: Tensor) -> None:
    codes_node, scale_node = weight.args[0], weight.args[1]
    codes = network.tensor(codes_node)  # type: ignore[arg-type]
    codes = torch.where(raised > scale, torch.round(codes * (scale / raised)), codes.double()).to(codes.dtype)
    with network.graph.inserting_before(weight):
        for k, (old, tensor) in enumerate(((codes_node, codes), (scale_node, raised))):
            weight.update_arg(k, network.graph.get_attr(add_tensor(network, f"{old.target}_fit", tensor)))  # type: ignore[union-attr]
