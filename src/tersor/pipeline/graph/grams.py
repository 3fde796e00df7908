"""Layers as solver problems, and the Gram matrices of their inputs from one pass over the calibration data."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tersor.network.network import Network, argument, groups_of, op_name, title, walk, weight_node
from tersor.numerics import QuantSpec
from tersor.observers.gram import Gram
from tersor.pipeline.graph.batches import passing
from tersor.solvers.patches import gram_of
from tersor.solvers.problem import Geometry, LayerProblem
from tersor.task import Task, batch_size
from tersor.task.calibration import mask_of


def grams(
    task: Task, network: Network, problems: dict[str, LayerProblem], on_batch: Callable[[int], None]
) -> dict[str, Gram]:
    """2·mean(x·xᵀ) of the inputs of every layer in ``problems``, by the layer's node.

    Layers with the same geometry that read the same value share one matrix.

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

    for number, batch in enumerate(passing(task, network)):
        token_mask = None if task.token_mask is None else mask_of(task.token_mask, batch, batch_size(batch))
        walk(network, batch, see)
        on_batch(number + 1)
    return {name: found[owner] for name, owner in shared.items()}


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
