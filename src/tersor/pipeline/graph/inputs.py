"""The range of a network's inputs, which often lie on a grid already, as 8-bit images do."""

from typing import Any

from torch import Tensor

from tersor.network.network import Network
from tersor.network.quantize import Range
from tersor.network.sites import Plan
from tersor.numerics import QuantSpec, fake_quantize, qparams

# Numbers of steps by which the range may grow; each shifts the codes relative to the data's own grid.
_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def fitted_input_ranges(
    network: Network, plan: Plan, ranges: dict[str, Range], samples: tuple[Any, ...]
) -> dict[str, Range]:
    """The ranges, with those of network inputs widened by up to two steps if that lowers the error on the samples.

    An image scaled as x/127.5 − 1 has 256 values that, since 0 is exact, all fall half-way between two codes: each
    has the largest possible error, and the last bit of the engine's arithmetic decides whether it rounds up or down.
    A slightly wider range spreads the values evenly between the codes.
    """
    ranges = dict(ranges)
    nodes = [n.name for n in network.graph.nodes if n.op == "placeholder"]
    values = dict(zip(nodes, (x for x in samples if isinstance(x, Tensor)), strict=False))
    for site in plan.activations():
        if site.node in values and site.spec.format.kind == "int" and not site.asked.solves_range:
            low, high = (float(b) for b in ranges[site.group])
            ranges[site.group] = _fitted(values[site.node][:16].float(), low, high, site.spec)
    return ranges


def _fitted(x: Tensor, low: float, high: float, spec: QuantSpec) -> tuple[float, float]:
    step = float(qparams(low, high, spec)[0])
    best, least = (low, high), float("inf")
    for widening in _STEPS:
        grown = (low - widening * step if low < 0 and spec.symmetric else low, high + widening * step)
        error = float((fake_quantize(x, *qparams(*grown, spec), spec) - x).square().mean())
        # Widen only for a clear gain: ties go to the observed range.
        if error < 0.98 * least:
            best, least = grown, error
    return best
