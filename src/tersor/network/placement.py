"""Operators whose quantizers would drown a part of their values, judged on some samples.

A sum is rounded on the grid of its larger operand, and joined values share one grid: if a part's power is not well
above the rounding noise of that grid, the part is lost, such as scores to which a mask of -10,000 is added.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from tersor.network.chunks import channels_last
from tersor.network.network import Network, op_name, title, walk
from tersor.network.quantize import Range
from tersor.network.roles import is_float_tensor
from tersor.network.sites import Plan
from tersor.numerics.qtensor import qparams
from tersor.policy import ACTIVATIONS, JOINS, LAYERS, TRANSPARENT
from tersor.words import said

# A part whose signal is less than this many dB above the rounding noise is lost.
LEAST = 12.0
CONVOLUTIONS = LAYERS - {"linear"}


def drowned(network: Network, plan: Plan, ranges: Mapping[str, Range], samples: tuple[Any, ...]) -> dict[str, str]:
    """The reason for leaving an operator in float, by graph name, for sums and joins that would lose an operand.

    Args:
        network: the planned network, in float.
        ranges: (low, high) of every group of activation sites.
        samples: one batch of its inputs.
    """
    noise = {s.node: _noise(ranges[s.group], s.spec) for s in plan.activations()}
    planned = {layer.node for layer in plan.layers if layer.planned in ("int8", "int16")}
    found = [n for n in network.operators() if op_name(n) in JOINS or (op_name(n) == "add" and n.name in planned)]
    parts = {n: list(dict.fromkeys(i for i in n.all_input_nodes if is_float_tensor(i))) for n in found}
    layers = [n for n in network.operators() if op_name(n) in CONVOLUTIONS and n.name in noise]
    layers = [n for n in layers if not _read_in_integers(n, planned)]
    wanted = {i.name for inputs in parts.values() for i in inputs}
    power: dict[str, float] = {}
    channels: dict[str, str] = {}

    def visit(node: fx.Node, value: Any) -> None:
        if node.name in wanted and isinstance(value, Tensor):
            power[node.name] = float(value.float().var(correction=0)) if value.numel() > 1 else 0.0
        if node in layers:
            lost = _lost_channels(value, noise[node.name])
            if lost:
                text = said(
                    "{count} of its {all} channels would be lost in the rounding of the others",
                    count=lost, all=value.shape[1],
                )
                channels[node.name] = text

    if wanted or layers:
        walk(network, samples, visit, tensors=channels_last(network))
    reasons = {}
    for node, inputs in parts.items():
        if op_name(node) in JOINS and _read_in_integers(node, planned):
            continue
        grids = [noise[n.name] for n in (node, *inputs) if n.name in noise]
        grid = max(grids, default=0.0)
        lost = [i for i in inputs if power.get(i.name, 0.0) > 0 and _db(power[i.name], grid) < LEAST]
        if lost and len(lost) < len(inputs):
            least = min(lost, key=lambda i: power[i.name])
            reasons[node.name] = (
                said(
                    "{value} would be lost in the rounding of what it is {verb} ({db} dB)",
                    value=title(least), verb=_VERBS[op_name(node)], db=f"{_db(power[least.name], grid):.0f}",
                )
            )
    # Joined values share their grid with others: a channel is judged only if it is rounded on its own.
    return reasons or channels


def _lost_channels(value: Tensor, noise: float) -> int:
    """The number of channels with a signal that is below the rounding of all of them."""
    power = value.double().transpose(0, 1).flatten(1).var(1, correction=0)
    return int(((power > 1e-12 * power.max()) & (power < noise * 10 ** (LEAST / 10))).sum()) if noise else 0


_VERBS = {
    "add": said("added to"),
    "cat": said("joined with"),
    "concat": said("joined with"),
    "stack": said("stacked with"),
}


def _db(power: float, noise: float) -> float:
    return math.inf if noise == 0 else 10 * math.log10(power / noise) if power else -math.inf


def _noise(bounds: Range, spec: Any) -> float:
    """The power of the rounding error of a value within these bounds."""
    scale, _ = qparams(*bounds, spec)
    return float(scale.double().max()) ** 2 / 12


def _read_in_integers(node: fx.Node, planned: set[str]) -> bool:
    """Whether an integer operator reads a value, moved or not, so that all of it needs one grid."""
    passing = TRANSPARENT | ACTIVATIONS
    return any(u.name in planned or (op_name(u) in passing and _read_in_integers(u, planned)) for u in node.users)
