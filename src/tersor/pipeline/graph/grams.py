"""Gram matrices of the layers' inputs, one pass over the calibration data."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tersor.network.network import walk
from tersor.observers.gram import Gram
from tersor.pipeline.graph.batches import passing
from tersor.pipeline.graph.prepare import Prepared
from tersor.solvers.patches import gram_of
from tersor.solvers.problem import LayerProblem
from tersor.task import Task


def grams(
    task: Task, prepared: Prepared, problems: dict[str, LayerProblem], on_batch: Callable[[int], None]
) -> dict[str, Gram]:
    """2·mean(x·xᵀ) of the inputs of every layer in ``problems``, by the layer's node.

    Layers of one geometry that read the same value share one matrix.

    Raises:
        CalibrationError: naming the layer whose input is NaN or infinite.
    """
    nodes = {n.name: n for n in prepared.network.operators()}
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

    for number, batch in enumerate(passing(task, prepared.network)):
        token_mask = None if task.token_mask is None else task.token_mask(*batch).bool()
        walk(prepared.network, batch, see)
        on_batch(number + 1)
    return {name: found[owner] for name, owner in shared.items()}
