"""The graph host: capture a network and quantize it."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tersor.pipeline.graph.host import GRAPH
from tersor.pipeline.graph.observe import observables, observe
from tersor.pipeline.graph.prepare import captured, planned
from tersor.pipeline.graph.rewriting import rewrite_by_probe
from tersor.pipeline.graph.solve import Solved, solve
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject
from tersor.policy import Policy
from tersor.recipe import Quantize, Recipe
from tersor.task import Task
from tersor.words import _


@dataclass(frozen=True)
class GraphHost:
    """Whole networks, captured as graphs and planned for an engine.

    Args:
        policy: the engine's capabilities.
    """

    policy: Policy
    name: ClassVar[str] = GRAPH.host

    def quantize(self, step: Quantize, subject: Subject, task: Task, stages: Stages) -> Subject:
        """The subject quantized; ``details`` holds the ``Solved``.

        The order is: plan, probe and rewrite as the plan requires, plan the rewritten network, observe it, solve and
        correct. Only the probe measures before the final plan.
        """
        with stages.stage("capture", _("planning")):
            original = captured(task) if subject.network is None else subject.network
            prepared = planned(original, step, self.policy)
        prepared = rewrite_by_probe(task, step, prepared, stages, subject.seed)
        observations = observe(task, prepared.network, observables(step, prepared), stages, subject.seed)
        return settled(subject, step, solve(step, prepared, observations, stages, subject.seed))


def settled(subject: Subject, step: Quantize, solved: Solved) -> Subject:
    """The subject with a step's result."""
    history = (*subject.history, step)
    return replace(subject, network=solved.network, plan=solved.prepared.plan, history=history, details=solved)


def start(task: Task, recipe: Recipe, host: Any, stages: Stages) -> Subject:
    """The subject of the recipe's first step: the task's model, captured.

    Raises:
        RecipeError: the recipe asks for options that graphs do not support.
    """
    GRAPH.check(recipe)
    with stages.stage("capture", _("capturing")):
        return Subject(task.model, host, captured(task), seed=recipe.seed)
