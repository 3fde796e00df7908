"""What a step made zero, weight by weight, and which zeros later steps keep."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tersor.errors import RecipeError
from tersor.network.network import Network
from tersor.network.sites import Plan
from tersor.pipeline.graph.pruning.prunable import Weight


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
class Sparsified:
    """What happened in a step that made single weights zero; a sibling of ``Pruned`` with the same fields.

    Args:
        target: what was asked for.
        macs, parameters: of one sample, before and after: zeros are counted.
        zeros: of every weight that could lose some.
        whole: layers that the score cannot rate, or whose weights cannot become zero, and why.
    """

    target: str
    macs: tuple[int, int]
    parameters: tuple[int, int]
    zeros: tuple[Zeroed, ...]
    whole: dict[str, str]
    widths: tuple[()] = ()
    fixed: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    branches: tuple[()] = ()
    faster: None = None
    kept: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    ranks: tuple[()] = ()

    @property
    def share(self) -> float:
        """The share of zeros among these weights."""
        return sum(z.zeros for z in self.zeros) / max(1, sum(z.weights for z in self.zeros))


def zeros_of(network: Network, weights: Mapping[str, Weight]) -> tuple[Zeroed, ...]:
    """The zeros of these weights of a network."""
    values = {name: network.tensor(name) for name in weights}
    return tuple(Zeroed(weights[n].layer, n, v.numel(), int((v == 0).sum())) for n, v in values.items())


def check_formats(prunings: Iterable[Any], plan: Plan) -> None:
    """Refuse formats without a zero for weights whose zeros stay.

    Raises:
        RecipeError: naming the layer.
    """
    layers = {z.layer for record in prunings if isinstance(record, Sparsified) for z in record.zeros if z.zeros}
    for site in plan.weights():
        if site.spec.format.name == "binary" and site.name in layers:
            raise RecipeError(
                f"{site.name}: binary has no code for zero, so its zeros cannot stay: take `ternary`, or leave the "
                "layer out of what becomes zero by `keep`"
            )


def kept_names(prunings: Iterable[Any]) -> frozenset[str]:
    """The names of the weights whose zeros stay zero in later steps, from the records of a subject."""
    records = (p for p in prunings if isinstance(p, Sparsified))
    return frozenset(z.tensor for record in records for z in record.zeros if z.zeros)
