"""Gram matrices of the layers' inputs, one pass over the calibration data."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from tersor.errors import TersorError
from tersor.network.network import walk
from tersor.observers.gram import Gram
from tersor.pipeline.batches import passing
from tersor.pipeline.prepare import Prepared
from tersor.solvers.patches import patches
from tersor.solvers.problem import LayerProblem
from tersor.task import Task

# Positions of one batch that a convolution's matrix is made of; neighbours tell little that is new.
_POSITIONS = 2**14


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
    counted: Tensor | None = None

    def see(node: Any, value: Any) -> None:
        for name in readers.get(node.name, ()):
            gram = gram_of(problems[name], value, counted)
            found[name] = found[name].merged(gram) if name in found else gram

    for number, batch in enumerate(passing(task, prepared.network)):
        counted = None if task.counted is None else task.counted(*batch).bool()
        walk(prepared.network, batch, see)
        on_batch(number + 1)
    return {name: found[owner] for name, owner in shared.items()}


def gram_of(problem: LayerProblem, x: Tensor, counted: Tensor | None = None) -> Gram:
    """The Gram matrix of one batch ``x`` of inputs of a linear layer or a convolution.

    Args:
        counted: which positions [batch, length] are real; of a layer that reads something else, all are.

    Raises:
        CalibrationError: naming the layer whose input is NaN or infinite.
    """
    try:
        if problem.weight.ndim == 2:
            fits = counted is not None and x.shape[:-1] == counted.shape
            return Gram.of(x.reshape(1, -1, x.shape[-1]), counted.reshape(-1) if fits and counted is not None else None)
        return Gram.of(patches(replace(problem, sample=x), _POSITIONS))
    except TersorError as error:
        raise type(error)(f"{problem.name}: {error}") from error
