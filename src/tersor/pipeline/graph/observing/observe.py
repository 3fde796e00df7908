"""Observe a network on the calibration data: everything that plans, solvers and corrections need."""

from typing import Any

import torch
from torch import Tensor

from tersor.network.calibrate import calibrate
from tersor.network.chunks import largest_value
from tersor.network.network import Network, walk
from tersor.network.observations import INPUT_SAMPLES, Observables, Observations, signature
from tersor.pipeline.graph.batches import Batch, keeping, one_batch, passing, seeded, some
from tersor.pipeline.graph.observing.grams import grams, layer_problem
from tersor.pipeline.graph.prepare import Prepared
from tersor.pipeline.progress import Stages
from tersor.recipe import Quantize
from tersor.task import Task, batch_size
from tersor.words import _

# Samples that are checked for repetitions only, if nothing else is observed.
PROBED = 64


def observables(step: Quantize, prepared: Prepared) -> Observables:
    """The observables that a plan, its solvers and its corrections need."""
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


def observe(
    task: Task,
    network: Network,
    wanted: Observables,
    stages: Stages,
    seed: int = 0,
    device: torch.device | None = None,
) -> Observations:
    """Stream the calibration data through the float network, a second time if Gram matrices are needed.

    Args:
        seed: of the data's random numbers, set again before each pass.
        device: where Gram matrices are collected, and stay; None: the CPU.

    Raises:
        CalibrationError: naming the batch with the wrong structure, or the layer where a value is NaN or infinite.
    """
    first: list[Batch] = []
    with stages.stage("calibrate", _("calibrating")) as bar, seeded(seed):
        batches = passing(task, network)
        needed = batches if wanted.samples is None else some(batches, wanted.samples)
        kept = keeping(needed, first, wanted.kept)
        found = calibrate(network, wanted.values, kept, wanted.layers, wanted.mean_samples, on_batch=bar.at)
    gathered = {}
    if wanted.grams:
        with stages.stage("calibrate", _("collecting Hessians")) as bar, seeded(seed):
            layers = [n for n in network.operators() if n.name in wanted.grams]
            gathered = grams(task, network, {n.name: layer_problem(network, n) for n in layers}, bar.at, device)
    inputs = _inputs(network, wanted.inputs, first)
    return Observations(signature(network), wanted, found, gathered, inputs, tuple(first))


def observed_inputs(network: Network) -> list[str]:
    """The float inputs, which are observed to detect repeated samples."""
    nodes = [n for n in network.graph.nodes if n.op == "placeholder"]
    return [n.name for n, x in zip(nodes, network.example, strict=True) if x.is_floating_point()]


def correction_samples(step: Quantize, network: Network, budget: int = 2**31) -> int:
    """The number of samples that bias correction uses, limited so that the network's values fit in ``budget`` bytes."""
    if not network.dynamic_batch:
        return batch_size(network.example)
    return max(1, min(step.correction_samples, budget // (4 * largest_value(network))))


def _inputs(network: Network, layers: frozenset[str], first: list[Batch]) -> dict[str, Tensor]:
    """The first inputs of each layer."""
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
