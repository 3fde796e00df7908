"""From the task to a plan, before any data: capture, rewrites, sites."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tersor.checkpoints.network import unsaveable
from tersor.errors import TaskError
from tersor.network.capture import capture
from tersor.network.network import Network
from tersor.network.rewrites import REWRITES
from tersor.network.sites import Plan, plan
from tersor.network.verify import rewritten
from tersor.pipeline.graph.host import GRAPH
from tersor.policy import Policy
from tersor.policy.policy import SIMULATION
from tersor.recipe import Prune, Quantize, Recipe
from tersor.task import Task
from tersor.words import said


@dataclass(frozen=True)
class Prepared:
    """A captured network, the equivalent network after rewrites, and the plan of the latter."""

    original: Network
    network: Network
    plan: Plan
    policy: Policy

    def planned_again(self, network: Network, step: Quantize, floats: Mapping[str, str] | None = None) -> "Prepared":
        """The same with an equivalent network, planned again; ``floats`` are operators that must stay in float."""
        return replace(self, network=network, plan=plan(network, step, self.policy, floats))


def prepare(task: Task, recipe: Recipe, policy: Policy) -> Prepared:
    """Capture, fold and plan; no data is run."""
    GRAPH.check(recipe)
    found = planned(captured(task), recipe.quantize, policy)
    if not any(isinstance(step, Prune) and step.amount[0] != "weights" for step in recipe.steps):
        return found
    note = said("the step prune makes layers narrower first: what is planned here is the network before it")
    return replace(found, original=replace(found.original, notes=(*found.original.notes, note)))


def captured(task: Task) -> Network:
    """The task's model as a graph that every engine supports: some reject certain forms of a global pool."""
    return rewritten(capture(task.model, task.example, task.dynamic), REWRITES["global_pool"]())


def planned(original: Network, step: Quantize, policy: Policy) -> Prepared:
    """A captured network, folded and planned; no data is run.

    Raises:
        RecipeError: the recipe does not fit the network.
        TaskError: it has no weights.
    """
    network = original
    for name in ("fold_constants", "fold_batchnorm", "fold_pad", "hoist_activations"):
        network = rewritten(network, REWRITES[name]())
    if step.activations.when != "static":
        network = rewritten(network, REWRITES["unroll"]())
    network = rewritten(network, REWRITES["decompose"](policy.decomposes))
    found = Prepared(original, network, plan(network, step, policy), policy)
    if not original.weight_bytes():
        raise TaskError("the model holds no weights: there is nothing to compress")
    if policy.engine == SIMULATION and (reason := unsaveable(network)):
        note = said("the result cannot be saved: {reason}", reason=reason)
        return replace(found, original=replace(original, notes=(*original.notes, note)))
    return found


def predicted_bytes(network: Network, plan: Plan) -> tuple[int, int]:
    """Bytes of the tensors now, and predicted after compression, including scales but not the engine's graph."""
    before = network.weight_bytes()
    saved = 0
    for name, bits, scales in {
        (s.group, s.spec.format.bits, _scales(network, s.group, s.spec)) for s in plan.weights()
    }:
        tensor = network.tensor(name)
        saved += tensor.numel() * tensor.element_size() - (tensor.numel() * bits + 7) // 8 - 4 * scales
    return before, before - saved


def _scales(network: Network, name: str, spec: object) -> int:
    from math import prod

    return prod(spec.granularity.scale_shape(network.tensor(name).shape))  # type: ignore[attr-defined]
