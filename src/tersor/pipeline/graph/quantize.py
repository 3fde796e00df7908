"""The graph host: capture a network and quantize it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from tersor.engines.base import Runner
from tersor.network.network import Network
from tersor.pipeline.graph.host import GRAPH
from tersor.pipeline.graph.observing.observe import observables, observe
from tersor.pipeline.graph.prepare import captured, planned
from tersor.pipeline.graph.pruning.record import check_formats
from tersor.pipeline.graph.pruning.step import prune
from tersor.pipeline.graph.rewriting import rewrite_by_probe
from tersor.pipeline.graph.solve import Solved, solve
from tersor.pipeline.graph.training.roles import check_zeros
from tersor.pipeline.graph.training.step import Place, train
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject
from tersor.policy import Policy
from tersor.recipe import Prune, Quantize, Recipe, Train
from tersor.task import Task
from tersor.words import _


@dataclass(frozen=True)
class GraphHost:
    """Whole networks, captured as graphs and planned for an engine.

    Args:
        policy: the engine's capabilities.
        place: where Gram matrices are collected and the weights that need them are solved; where training runs, and
            keeps its state.
        compile: runs a network in the engine; None where only a plan is made.
    """

    policy: Policy
    place: Place = field(default_factory=Place)
    compile: Callable[[Network], Runner] | None = None
    name: ClassVar[str] = GRAPH.host

    def quantize(self, step: Quantize, subject: Subject, task: Task, stages: Stages) -> Subject:
        """The subject quantized; ``details`` holds the ``Solved``.

        The order is: plan, probe and rewrite as the plan requires, plan the rewritten network, observe it, solve and
        correct. Only the probe measures before the final plan.
        """
        with stages.stage("capture", _("planning")):
            original = captured(task) if subject.network is None else subject.network
            prepared = planned(original, step, self.policy)
            check_formats(subject.prunings, prepared.plan)
        prepared = rewrite_by_probe(task, step, prepared, stages, subject.seed)
        observations = observe(
            task, prepared.network, observables(step, prepared), stages, subject.seed, self.place.device
        )
        return settled(subject, step, solve(step, prepared, observations, stages, subject.seed))

    def train(self, step: Train, subject: Subject, task: Task, stages: Stages) -> Subject:
        """The subject trained: in float before ``quantize``, with its quantizers after it."""
        return train(step, subject, task, stages, self.place)

    def prune(self, step: Prune, subject: Subject, task: Task, stages: Stages) -> Subject:
        """The subject with a narrower network, before ``quantize``."""
        return prune(step, subject, task, stages)


def settled(subject: Subject, step: Quantize, solved: Solved) -> Subject:
    """The subject with a step's result."""
    history = (*subject.history, step)
    floats = subject.network if subject.prunings else None
    found = replace(subject, network=solved.network, floats=floats, plan=solved.prepared.plan, details=solved)
    return replace(found, history=history)


def start(task: Task, recipe: Recipe, host: Any, stages: Stages) -> Subject:
    """The subject of the recipe's first step: the task's model, captured.

    Raises:
        RecipeError: the recipe asks for options that graphs do not support.
    """
    GRAPH.check(recipe)
    with stages.stage("capture", _("capturing")):
        network = captured(task)
        check_zeros(recipe, network)
        return Subject(task.model, host, network, source=network, seed=recipe.seed)
