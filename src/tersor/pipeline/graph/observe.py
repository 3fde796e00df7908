"""Observe a network on the calibration data: everything that plans, solvers and corrections ask for afterwards."""

from typing import Any

from torch import Tensor

from tersor.network.calibrate import calibrate
from tersor.network.chunks import largest_value
from tersor.network.network import Network, walk
from tersor.network.observations import INPUT_SAMPLES, Observables, Observations, signature
from tersor.pipeline.graph.batches import Batch, keeping, one_batch, passing, seeded, some
from tersor.pipeline.graph.grams import grams, layer_problem
from tersor.pipeline.graph.prepare import Prepared
from tersor.pipeline.progress import Stages
from tersor.recipe import Quantize
from tersor.task import Task, batch_size

# Samples on which nothing but repetitions is looked for.
PROBED = 64


def observables(step: Quantize, prepared: Prepared) -> Observables:
    """What a plan, its solvers and its corrections ask of the data."""
    network, plan = prepared.network, prepared.plan
    mean_samples = correction_samples(step, network) if step.bias_correction else 0
    weights = plan.weights()
    return Observables(
        values=frozenset((*plan.sources(), *observed_inputs(network))),
        layers=frozenset(s.node for s in weights if mean_samples),
        grams=frozenset(s.node for s in weights if "gram" in s.asked.choice().needs),
        inputs=frozenset(s.node for s in weights if "sample" in s.asked.choice().needs),
        mean_samples=mean_samples,
        samples=None if plan.activations() or mean_samples else PROBED,
    )


def observe(task: Task, network: Network, wanted: Observables, stages: Stages, seed: int = 0) -> Observations:
    """Stream the calibration data through the float network; a second time where Gram matrices are asked for.

    Args:
        seed: from which data draws its random numbers, in each pass anew.

    Raises:
        CalibrationError: naming the batch that does not fit, or the layer where a value is NaN or infinite.
    """
    first: list[Batch] = []
    with stages.stage("calibrate", "calibrating") as bar, seeded(seed):
        batches = passing(task, network)
        needed = batches if wanted.samples is None else some(batches, wanted.samples)
        kept = keeping(needed, first, wanted.kept)
        found = calibrate(network, wanted.values, kept, wanted.layers, wanted.mean_samples, on_batch=bar.at)
    gathered = {}
    if wanted.grams:
        with stages.stage("calibrate", "collecting Hessians") as bar, seeded(seed):
            layers = [n for n in network.operators() if n.name in wanted.grams]
            gathered = grams(task, network, {n.name: layer_problem(network, n) for n in layers}, bar.at)
    inputs = _inputs(network, wanted.inputs, first)
    return Observations(signature(network), wanted, found, gathered, inputs, tuple(first))


def observed_inputs(network: Network) -> list[str]:
    """The float inputs, observed so that repeated samples are noticed."""
    nodes = [n for n in network.graph.nodes if n.op == "placeholder"]
    return [n.name for n, x in zip(nodes, network.example, strict=True) if x.is_floating_point()]


def correction_samples(step: Quantize, network: Network, budget: int = 2**31) -> int:
    """How many samples bias correction computes at once: fewer where the network's values are large."""
    if not network.dynamic_batch:
        return batch_size(network.example)
    return max(1, min(step.correction_samples, budget // (4 * largest_value(network))))


def _inputs(network: Network, layers: frozenset[str], first: list[Batch]) -> dict[str, Tensor]:
    """The first inputs of each of the layers."""
    if not layers:
        return {}
    readers: dict[str, list[str]] = {}
    for node in network.operators():
        if node.name in layers:
            readers.setdefault(node.all_input_nodes[0].name, []).append(node.name)
    kept: dict[str, Tensor] = {}

    def keep(node: Any, value: Any) -> None:
        for name in readers.get(node.name, ()):
            kept[name] = value

    walk(network, one_batch(network, first, INPUT_SAMPLES), keep)
    return kept
