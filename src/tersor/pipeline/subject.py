"""What every step of a recipe takes and returns."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tersor.network.network import Network


@dataclass(frozen=True, eq=False)
class Subject:
    """A model on its way through the steps of a recipe; a step returns another one.

    Args:
        model: the caller's, which no step changes; None once the result is made.
        host: how the model is addressed; it carries out the steps.
        network: the model as a graph, float or quantized; None where the host addresses modules or files.
        plan: what is quantized and how, a ``Plan`` or of a folder its ``WeightPlan`` values; None before.
        seed: of everything random.
        history: the steps that were carried out.
        details: what the host found out on the way, for the report; dropped with the model.
    """

    model: nn.Module | None
    host: Any = None
    network: Network | None = None
    plan: Any = None
    seed: int = 0
    history: tuple[Any, ...] = ()
    details: Any = None

    def result(self) -> "Subject":
        """What is kept of it: neither the caller's model nor what was observed."""
        return replace(self, model=None, details=None)
