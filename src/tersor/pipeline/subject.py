"""The input and output of every step of a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tersor.network.network import Network


@dataclass(frozen=True, eq=False)
class Subject:
    """A model on its way through the steps of a recipe; each step returns a new one.

    Args:
        model: the caller's, which no step changes; None in the result.
        host: how the model is addressed; it runs the steps.
        network: the model as a graph, float or quantized; None if the host addresses modules or files.
        plan: what is quantized and how, a ``Plan``, or for a folder its ``WeightPlan`` values; None before planning.
        source: the network as it was captured, before any step; None as for ``network``.
        floats: the float network that was quantized, if steps `prune` changed it before.
        seed: of everything random.
        history: the steps that were run.
        ahead: the steps that come behind the one that runs.
        trainings: what happened in each ``train`` step.
        prunings: what happened in each ``prune`` step.
        details: the host's findings for the report; dropped together with the model.
    """

    model: nn.Module | None
    host: Any = None
    network: Network | None = None
    plan: Any = None
    source: Network | None = None
    floats: Network | None = None
    seed: int = 0
    history: tuple[Any, ...] = ()
    ahead: tuple[Any, ...] = ()
    trainings: tuple[Any, ...] = ()
    prunings: tuple[Any, ...] = ()
    details: Any = None

    def result(self) -> "Subject":
        """The part to keep: without the caller's model and the observations."""
        return replace(self, model=None, details=None)


def through(steps: Sequence[Any], subject: Subject, task: Any, stages: Any) -> Subject:
    """The subject behind all steps; each knows those that are ahead of it."""
    for number, step in enumerate(steps):
        subject = step(replace(subject, ahead=tuple(steps[number + 1 :])), task, stages)
    return subject
