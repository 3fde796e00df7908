"""The student: a quantized network as a module that trains, and what training made of it."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from tersor.network.network import Network, title, weight_position
from tersor.network.quantize import quantize_network
from tersor.network.rewrites.fold_constants import constant_tensors
from tersor.network.sites import Site
from tersor.network.trainable.build import trainable
from tersor.network.trainable.module import Trainable
from tersor.network.trainable.result import codes_of, grids_of
from tersor.network.verify import rewritten
from tersor.observers import relative_error
from tersor.pipeline.graph.solve import Solved
from tersor.recipe import Train
from tersor.tables import Named
from tersor.task import Task
from tersor.training.quantizers import Start, quantizer


def student_of(task: Task, solved: Solved, quantizers: Mapping[str, Named], *, dropout: bool = False) -> Trainable:
    """The quantized network of a plan as a module that trains.

    Args:
        quantizers: the training quantizers of ``weights`` and ``activations``; ``auto`` where none is named.
        dropout: whether dropout is active while training.

    Raises:
        RecipeError: a quantizer that does not train the format of a site.
    """
    prepared = solved.prepared
    weights = {name: a.qtensor for name, a in solved.solutions.items() if a.qtensor is not None}
    network = rewritten(prepared.network, quantize_network, prepared.plan, solved.ranges, weights)
    sites = {(s.name, s.kind == "weight"): s for s in prepared.plan.sites}

    def make(node: fx.Node, scale: Tensor, zero_point: Tensor, weight: Tensor | None) -> nn.Module:
        site = sites[title(node), weight is not None]
        asked = quantizers.get("activations" if weight is None else "weights", "auto")
        if site.fixed is not None or site.spec.format.kind == "float":
            asked = "fixed"
        return quantizer(asked, Start(site.name, site.spec, scale, zero_point, weight, _error(solved, site)))

    return trainable(
        network,
        prepared.network,
        prepared.original,
        make,
        {name: p.requires_grad for name, p in task.model.named_parameters()},
        constants=constant_tensors(prepared.original),
        cumulative=_cumulative(task.model),
        dropout=dropout,
    )


def float_student(task: Task, network: Network, *, dropout: bool = False) -> Trainable:
    """A float network as a module that trains."""
    parameters, cumulative = {n: p.requires_grad for n, p in task.model.named_parameters()}, _cumulative(task.model)
    return trainable(
        network, network, network, lambda *_: None, parameters, cumulative=cumulative, dropout=dropout
    )


def quantizers_of(step: Train) -> dict[str, Named]:
    """The training quantizers that a step asks for."""
    return {"weights": step.weight_quantizer, "activations": step.quantizers.activations}


def _error(solved: Solved, site: Site) -> float | None:
    """The power of a site's error over that of its values, on the calibration data; None if it was not observed."""
    if site.kind == "weight":
        answer = solved.solutions.get(site.node)
        decibels = None if answer is None else answer.record.sqnr_db
        return None if decibels is None else 10 ** (-decibels / 10)
    sources = [s for s in solved.prepared.plan.activations() if s.group == site.group and s.source]
    ends = [torch.as_tensor(end) for end in solved.ranges[site.group]]
    observed = sources and all(s.node in solved.calibration.statistics for s in sources)
    if not observed or any(end.numel() > 1 for end in ends):
        return None
    low, high = map(float, ends)
    return relative_error(solved.calibration.of_group(solved.prepared.plan, site.group), site.spec, low, high)


def _cumulative(model: nn.Module) -> dict[str, int]:
    """The batches so far of BatchNorm modules whose statistics are the mean of all batches (``momentum=None``)."""
    found = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return {n: int(m.num_batches_tracked) for n, m in found if m.momentum is None and m.num_batches_tracked is not None}


def with_trained(solved: Solved, student: Trainable, network: Network) -> Solved:
    """A Solved with the trained network, and the ranges and codes that training led to."""
    plan, grids, codes = solved.prepared.plan, grids_of(student), codes_of(student)
    made = student._graphs.network
    nodes = {n.name: n for n in made.graph.nodes}
    ranges, solutions = dict(solved.ranges), dict(solved.solutions)
    steps = {title(n): _scale_of(n) for n in made.operators() if n.meta.get("quantizer")}
    for site in plan.activations():
        grid = grids.get(steps.get(site.name, ""))
        if grid is not None and site.spec.format.kind == "int":
            scale, zero = (t.reshape(()) if t.numel() == 1 else t for t in grid)
            ranges[site.group] = (site.spec.low - zero) * scale, (site.spec.high - zero) * scale
    for site in plan.weights():
        stored = nodes[site.node].args[weight_position(nodes[site.node])]
        read = stored.args[0] if isinstance(stored, fx.Node) and stored.args else None
        found = codes.get(str(read.target)) if isinstance(read, fx.Node) else None
        if found is not None:
            solutions[site.node] = replace(solutions[site.node], qtensor=found)
    return replace(solved, network=network, ranges=ranges, solutions=solutions)


def _scale_of(node: fx.Node) -> str:
    """The name of a quantizer's scale."""
    scale = node.args[1] if node.target is torch.ops.tersor.fake_quantize.default else None
    return str(scale.target) if isinstance(scale, fx.Node) else ""
