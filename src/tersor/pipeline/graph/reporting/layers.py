"""What the report tells of each layer beyond its precision: what it reads, the values there, and its weights."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from tersor.measure.schema import Channels, Histogram
from tersor.network.network import Network, op_name, weight_node
from tersor.network.planned import Site
from tersor.numerics.spec import QuantSpec
from tersor.observers import OBSERVERS, Statistics, compare, observe
from tersor.pipeline.graph.solve import Solved
from tersor.policy import TRANSPARENT

DRAWN = 400  # limit of sites and of weights drawn in a report, which bounds the size of the page
BINS, COLUMNS = 96, 32


def site_histograms(solved: Solved) -> dict[str, Histogram]:
    """The values of every group of activations, with the ranges of all estimators, by group."""
    plan = solved.prepared.plan
    groups = {s.group: s for s in reversed(plan.activations()) if s.source}
    drawn: dict[str, Histogram] = {}
    for group, site in list(reversed(groups.items()))[:DRAWN]:
        statistics = solved.calibration.of_group(plan, group)
        found = _histogram(site.name, statistics, site.spec, solved.ranges[group])
        if found is not None:
            drawn[group] = found
    return drawn


def weight_histograms(solved: Solved) -> dict[str, Histogram]:
    """The float weights of every layer whose weights are quantized, by its graph name; of shared weights once."""
    network, plan = solved.prepared.network, solved.prepared.plan
    drawn: dict[str, Histogram] = {}
    by_weight: dict[str, Histogram | None] = {}
    for site in plan.weights():
        if site.group not in by_weight and len(by_weight) < DRAWN:
            by_weight[site.group] = _weights(network, site, solved.solutions.get(site.node))
        if (found := by_weight.get(site.group)) is not None:
            drawn[site.node] = found
    return drawn


def weight_bytes(solved: Solved) -> dict[str, int | None]:
    """The bytes of every layer's weights, by its graph name; None if they are computed at run time.

    Of a layer in float they are those of all matrices that it reads, such as of an LSTM; shared ones count once.
    """
    network, seen, found = solved.prepared.network, set[str](), dict[str, int | None]()
    for layer in solved.prepared.plan.layers:
        answer = solved.solutions.get(layer.node)
        node = network.node(layer.node)
        if layer.weight_format is None:
            read = {n.name: network.tensor(n) for n in node.all_input_nodes if n.op == "get_attr"}
            floats = {n: t for n, t in read.items() if t.is_floating_point() and t.ndim > 1 and n not in seen}
            seen.update(floats)
            found[layer.node] = sum(t.numel() * t.element_size() for t in floats.values())
        elif answer is not None and answer.qtensor is not None:
            found[layer.node] = answer.qtensor.nbytes
        elif (weight := weight_node(node)) is None:
            found[layer.node] = None
        else:
            tensor, half = network.tensor(weight), layer.weight_format in ("fp16", "bf16")
            found[layer.node] = tensor.numel() * (2 if half else tensor.element_size())
    return found


def _weights(network: Network, site: Site, answer: Any) -> Histogram | None:
    node = weight_node(network.node(site.node))
    weight = None if node is None else network.tensor(node).detach()
    if weight is None or not weight.is_floating_point() or not bool(weight.isfinite().all()):
        return None
    statistics = observe(None, weight.float(), channel_axis=0)
    chosen = None
    if answer is not None and answer.qtensor is not None:
        stored = answer.qtensor.dequantize()
        chosen = (float(stored.min()), float(stored.max()))
    spec = QuantSpec(site.spec.format, "tensor", symmetric=site.spec.symmetric)
    return None if statistics is None else _histogram(site.name, statistics, spec, chosen)


def _histogram(
    name: str, statistics: Statistics, spec: QuantSpec, chosen: tuple[Any, Any] | None
) -> Histogram | None:
    data: dict[str, Any] = statistics.to_dict(BINS)["histogram"]
    edges = [data["low"] + k * data["width"] for k in range(len(data["counts"]) + 1)]
    if len(set(edges)) != len(edges) or not data["counts"]:
        return None
    thresholds = {} if chosen is None else {"chosen": (float(chosen[0]), float(chosen[1]))}
    for estimate in compare(statistics, spec, OBSERVERS):
        if estimate.low is not None and estimate.high is not None:
            thresholds[estimate.observer] = (float(estimate.low), float(estimate.high))
    return Histogram(
        site=name,
        bins=tuple(edges),
        counts=tuple(data["counts"]),
        thresholds=thresholds,
        channels=_channels(statistics),
    )


def _channels(statistics: Statistics) -> Channels | None:
    """The range of every channel, in at most COLUMNS runs of neighbours."""
    found = statistics.channels
    if found is None or len(found.min) < 2:
        return None
    step = -(-len(found.min) // COLUMNS)

    def runs(values: Tensor, merged: Any) -> tuple[float, ...]:
        return tuple(float(f"{float(merged(part)):.4g}") for part in values.split(step))

    return Channels(count=len(found.min), low=runs(found.min, torch.min), high=runs(found.max, torch.max))


def connections(solved: Solved, drawn: Mapping[str, Histogram]) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """For each planned layer, by its graph name: the layers or network inputs that it reads, and the sites drawn."""
    plan, network = solved.prepared.plan, solved.prepared.network
    names = {layer.node: layer.name for layer in plan.layers}
    sites = {s.node: drawn[s.group].site for s in plan.activations() if s.group in drawn}

    @cache
    def layers_behind(node: fx.Node) -> tuple[str, ...]:
        if node.name in names:
            return (names[node.name],)
        if node.op == "placeholder":
            return (str(node.target),)
        return _unique(layers_behind(source) for source in _sources(node))

    @cache
    def sites_behind(node: fx.Node) -> tuple[str, ...]:
        if node.name in sites:
            return (sites[node.name],)
        moves = node.op == "call_function" and op_name(node) in TRANSPARENT
        return _unique(sites_behind(source) for source in _sources(node)) if moves else ()

    found = {}
    for layer in plan.layers:
        read = _sources(network.node(layer.node))
        found[layer.node] = (_unique(map(layers_behind, read)), _unique(map(sites_behind, read)))
    return found


def _sources(node: fx.Node) -> list[fx.Node]:
    return [source for source in node.all_input_nodes if source.op != "get_attr"]


def _unique(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part))
