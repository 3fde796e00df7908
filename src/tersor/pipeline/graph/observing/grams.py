"""Layers as solver problems, and the Gram matrices of their inputs from one pass over the calibration data."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tersor.network.network import Network, argument, call, groups_of, op_name, title, walk, weight_node
from tersor.numerics import QuantSpec
from tersor.observers.gram import Gram
from tersor.pipeline.graph.batches import Batch, passing
from tersor.solvers.patches import gram_of
from tersor.solvers.problem import Geometry, LayerProblem
from tersor.task import Task, batch_size
from tersor.task.calibration import mask_of


def grams(
    task: Task,
    network: Network,
    problems: dict[str, LayerProblem],
    on_batch: Callable[[int], None],
    device: torch.device | None = None,
) -> dict[str, Gram]:
    """2·mean(x·xᵀ) of the inputs of every layer in ``problems``, by the layer's node.

    Layers with the same geometry that read the same value share one matrix. The network runs on ``device``, where the
    matrices stay; None: the CPU.

    Raises:
        CalibrationError: naming the layer whose input is NaN or infinite.
    """
    nodes = {n.name: n for n in network.operators()}
    owners: dict[Any, str] = {}
    shared: dict[str, str] = {}
    readers: dict[str, list[str]] = {}
    for name, problem in problems.items():
        source: Any = nodes[name].args[0]
        key = (source.name, problem.geometry, problem.weight.shape[1:])
        if key not in owners:
            owners[key] = name
            readers.setdefault(source.name, []).append(name)
        shared[name] = owners[key]
    found: dict[str, Gram] = {}
    token_mask: Tensor | None = None

    def see(node: Any, value: Any) -> None:
        for name in readers.get(node.name, ()):
            gram = gram_of(problems[name], value, token_mask)
            found[name] = found[name].merged(gram) if name in found else gram

    run = partial(walk, network) if device is None or device.type == "cpu" else _walk_on(network, device)
    for number, batch in enumerate(passing(task, network)):
        if task.token_mask is not None:
            token_mask = mask_of(task.token_mask, batch, batch_size(batch)).to(device)
        run(batch, see)
        on_batch(number + 1)
    return {name: found[owner] for name, owner in shared.items()}


def _walk_on(network: Network, device: torch.device) -> Callable[[Batch, Callable[[Any, Any], None]], Any]:
    """``walk`` on a device, although the capture wrote another one into some arguments of operators."""
    tensors = {name: t.to(device) for name, t in network.tensors()}

    def run(node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = tree_map_only(torch.device, lambda _: device, (args, kwargs))
        return call(node, args, kwargs)

    return lambda batch, visit: walk(network, tuple(x.to(device) for x in batch), visit, run, tensors)


def layer_problem(network: Network, layer: Any) -> LayerProblem:
    """A layer's weight and geometry as a solver problem, with an fp32 spec."""
    weight = weight_node(layer)
    assert weight is not None
    return LayerProblem(title(layer), network.tensor(weight), QuantSpec("fp32"), _geometry(layer))


def _geometry(node: Any) -> Geometry:
    if not op_name(node).startswith("conv"):
        return Geometry()
    spatial = int(op_name(node)[-2]) if op_name(node)[-2].isdigit() else 2

    def each(position: int, name: str, default: int) -> Any:
        value = argument(node, position, name, [default])
        return value if isinstance(value, str) else tuple(value) * (spatial if len(value) == 1 else 1)

    return Geometry(each(3, "stride", 1), each(4, "padding", 0), each(5, "dilation", 1), groups_of(node))
