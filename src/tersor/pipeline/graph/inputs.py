"""The range of a network's own inputs, which often lie on a grid of their own: 8-bit pictures do."""

from typing import Any

from torch import Tensor

from tersor.network.network import Network
from tersor.network.quantize import Range
from tersor.network.sites import Plan
from tersor.numerics import QuantSpec, fake_quantize, qparams

# By how many steps the range may grow; each moves the codes against the data's own grid.
_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def fitted_input_ranges(
    network: Network, plan: Plan, ranges: dict[str, Range], samples: tuple[Any, ...]
) -> dict[str, Range]:
    """The ranges, those of inputs widened by up to two steps where that lowers the error on the samples.

    A picture scaled as x/127.5 − 1 has 256 values that, 0 being exact, all fall half-way between two codes: each
    has the largest error there is, and whether it rounds up or down is left to the last bit of the engine's
    arithmetic. A slightly wider range spreads them evenly.
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
        # Wider only where it truly helps: ties go to the range as seen.
        if error < 0.98 * least:
            best, least = grown, error
    return best
