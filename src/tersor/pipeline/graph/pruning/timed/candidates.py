"""Networks made to run in the engine quickly, as the steps behind the pruning will make them run, but for accuracy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tersor.errors import RecipeError
from tersor.network.network import Network
from tersor.pipeline.graph.batches import Batch
from tersor.pipeline.graph.pruning.timed.stairs import Compile
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Quantize
from tersor.task import Task, batch_size

SAMPLES = 8


def plain(step: Quantize) -> Quantize:
    """The step without what changes numbers alone: the time of a call depends on shapes and formats."""
    static = step.activations.when == "static"
    activations = step.activations.model_copy(update={"range": "minmax"}) if static else step.activations
    return step.model_copy(
        update={
            "weights": step.weights.without_data(), "activations": activations, "bias_correction": False,
            "equalize": False, "smooth": False,
        }
    )  # fmt: skip


def compiler(subject: Subject, task: Task, batches: list[Batch]) -> Compile:
    """Compile a float network for the subject's engine, quantized as the next step ``quantize`` says.

    What a candidate computes does not matter, only how long it takes: weights are rounded to nearest, and ranges are
    those of a few samples.

    Raises:
        RecipeError: the host knows no engine, or several.
    """
    compiled: Callable[[Network], Any] | None = getattr(subject.host, "compile", None)
    if compiled is None:
        raise RecipeError(
            "a target in latency is measured in the engine that the network is for: name one engine, such as "
            "`--engine openvino`"
        )
    step = next((s for s in subject.ahead if isinstance(s, Quantize)), None)
    if step is None:
        return compiled
    quick = plain(step)
    few = tuple(x[:SAMPLES] if x.ndim and batch_size(batches[0]) > SAMPLES else x for x in batches[0])
    sample = replace(task, calibration=lambda: [few])

    def run(network: Network) -> Any:
        made = subject.host.quantize(quick, replace(subject, network=network), sample, Stages(False))
        return compiled(made.network)

    return run
