"""The record of a pruning, and which of its zeros later steps keep."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tersor.errors import RecipeError
from tersor.network.network import Network
from tersor.network.sites import Plan
from tersor.pipeline.graph.pruning.groups import Width
from tersor.pipeline.graph.pruning.named.narrowed import Indices
from tersor.pipeline.graph.pruning.prunable import Weight
from tersor.recipe import Prune


@dataclass(frozen=True)
class Zeroed:
    """The zeros of one weight.

    Args:
        layer: its name.
        tensor: the name of the weight.
        weights: how many there are.
        zeros: how many of them are zero.
    """

    layer: str
    tensor: str
    weights: int
    zeros: int


@dataclass(frozen=True)
class Pruned:
    """What happened in one step `prune`, or in a step `train` that made weights zero.

    Args:
        target: what was asked for.
        macs, parameters: of one sample, before and after; zeros are counted.
        widths: of every group that could lose something.
        fixed: layers none of whose outputs can go, and why.
        whole: groups and layers that the score cannot rate, and why; they stay whole.
        notes: warnings for the report.
        branches: those that went, by the name of their last layer.
        faster: for a target in latency how many times as fast the network was measured in the engine.
        kept: what is left of each tensor that lost something.
        ranks: of every layer that could become two thinner ones.
        zeros: of every weight that could lose some.
        pinned: the step that makes the same network without choosing anything; None: the step itself.
    """

    target: str
    macs: tuple[int, int]
    parameters: tuple[int, int]
    widths: tuple[Width, ...] = ()
    fixed: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    faster: float | None = None
    kept: Indices = field(default_factory=dict)
    ranks: tuple[Width, ...] = ()
    zeros: tuple[Zeroed, ...] = ()
    pinned: Prune | None = None

    @property
    def share(self) -> float:
        """The share of zeros among these weights."""
        return sum(z.zeros for z in self.zeros) / max(1, sum(z.weights for z in self.zeros))


def zeros_of(network: Network, weights: Mapping[str, Weight]) -> tuple[Zeroed, ...]:
    """The zeros of these weights of a network."""
    values = {name: network.tensor(name) for name in weights}
    return tuple(Zeroed(weights[n].layer, n, v.numel(), int((v == 0).sum())) for n, v in values.items())


def check_formats(prunings: Iterable[Pruned], plan: Plan) -> None:
    """Refuse formats without a zero for weights whose zeros stay.

    Raises:
        RecipeError: naming the layer.
    """
    layers = {z.layer for record in prunings for z in record.zeros if z.zeros}
    for site in plan.weights():
        if site.spec.format.name == "binary" and site.name in layers:
            raise RecipeError(
                f"{site.name}: binary has no code for zero, so its zeros cannot stay: take `ternary`, or leave the "
                "layer out of what becomes zero by `keep`"
            )


def kept_names(prunings: Iterable[Pruned]) -> frozenset[str]:
    """The names of the weights whose zeros stay zero in later steps, from the records of a subject."""
    return frozenset(z.tensor for record in prunings for z in record.zeros if z.zeros)
