"""Measure the report's figures: original and compressed network side by side in the same engine."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tersor.engines import ENGINES
from tersor.engines.base import Runner, Timed
from tersor.engines.numbers import check_numbers
from tersor.errors import TersorError
from tersor.files import temporary_folder
from tersor.measure import (
    AgreementRecorder,
    MetricResult,
    check_lengths,
    evaluate_metric,
    interleave,
    measure_memory,
    paired_interval,
    prediction_agreement,
    ratio,
    same_inputs,
)
from tersor.measure.energy import joules_per_call
from tersor.measure.latency import Latency
from tersor.measure.metric import dependence_warnings
from tersor.network.network import Network
from tersor.pipeline.graph.batches import cut
from tersor.pipeline.progress import Stages
from tersor.task import Task
from tersor.task.unchanged import unchanged
from tersor.words import _, said

_log = logging.getLogger(__name__)
ROUNDS = 15


@dataclass
class Measured:
    """The measured figures; ``unknown[path]`` gives the reason for a figure that is None.

    ``times`` are the milliseconds of operators in one call, by the engine's names; empty without a profile.
    """

    bytes: dict[str, int] = field(default_factory=dict)
    metric: dict[str, MetricResult] = field(default_factory=dict)
    latency: dict[str, Latency] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    energy: dict[str, float] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    agreement: float | None = None
    simulation_agreement: float | None = None
    speedup: Any = None
    unknown: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subjects:
    """The original and the compressed network, and their runners in the same engine."""

    task: Task
    engine: str
    original: Network
    compressed: Network
    original_runner: Runner
    compressed_runner: Runner
    threads: int


def measure(subjects: Subjects, samples: tuple[Any, ...], stages: Stages, evaluate: bool = True) -> Measured:
    """Size, latency, memory and energy of both networks; the metric in the engine and in simulation."""
    found = Measured()
    with stages.stage("measure", _("measuring size and memory"), 4) as bar:
        _sizes_and_memory(subjects, found, bar.advance)
    with stages.stage("measure", _("timing, interleaved"), ROUNDS) as bar:
        _latencies(subjects, found, bar.at)
    if subjects.task.evaluate is not None and evaluate:
        with stages.stage("measure", _("evaluating original, compressed and simulation"), 3) as bar:
            _metrics(subjects, found, bar.advance)
    else:
        reason = said("evaluation was switched off") if subjects.task.evaluate else said("the task has no evaluate")
        for path in _METRIC_PATHS:
            found.unknown[path] = reason
    _numbers(subjects, samples, found)
    return found


_METRIC_PATHS = (
    "original.metric",
    "compressed.metric",
    "compressed.metric_interval",
    "compressed.metric_simulated",
    "compressed.agreement",
    "ratios.metric_drop",
    "samples.evaluation",
)


def single(network: Network) -> tuple[Tensor, ...]:
    """The example, as a batch of 1 if the batch is dynamic."""
    return tuple(x[:1].clone() if network.dynamic_batch and x.ndim else x for x in network.example)


def _sizes_and_memory(subjects: Subjects, found: Measured, on_step: Callable[[], None]) -> None:
    inputs = single(subjects.original)
    runners = (("original", subjects.original_runner), ("compressed", subjects.compressed_runner))
    for name, runner in runners:
        with temporary_folder() as folder:
            files = runner.save(folder)
            found.bytes[name] = sum((folder / f).stat().st_size for f in files)
            on_step()
            arguments = [subjects.engine, str(folder), subjects.threads, runner.precision]
            try:
                memory = measure_memory(
                    "tersor.engines:load_runner",
                    arguments,
                    inputs,
                    imports=ENGINES[subjects.engine].libraries,
                    threads=subjects.threads,
                )
                found.memory[name] = memory.model_bytes
            except TersorError as error:
                found.unknown[f"{name}.memory_bytes"] = said("it could not be measured ({error})", error=error)
            on_step()


def _latencies(subjects: Subjects, found: Measured, on_round: Callable[[int, int], None]) -> None:
    inputs = single(subjects.original)
    example = tuple(
        x[:1] if isinstance(x, Tensor) and x.ndim and subjects.original.dynamic_batch else x
        for x in subjects.task.arguments(subjects.task.example)
    )
    model, names = subjects.task.model, subjects.task.input_names
    # A model may write into its input.
    example = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), example)

    def eager() -> None:
        with torch.no_grad():
            model(**dict(zip(names, example, strict=True))) if names else model(*example)

    calls = {
        "original": lambda: subjects.original_runner(*inputs),
        "compressed": lambda: subjects.compressed_runner(*inputs),
        "eager": eager,
    }
    before = torch.get_num_threads()
    torch.set_num_threads(subjects.threads)
    try:
        found.latency = interleave(calls, rounds=ROUNDS, progress=on_round)
        for name in ("original", "compressed"):
            joules = joules_per_call(calls[name])
            if joules is not None:
                found.energy[name] = joules
    finally:
        torch.set_num_threads(before)
    found.speedup = ratio(found.latency["original"], found.latency["compressed"])
    if isinstance(subjects.compressed_runner, Timed):
        try:
            found.times = subjects.compressed_runner.times(*inputs)
        except Exception as error:  # an error of any library: a profile must not abort what it profiles
            _log.warning("no times of operators: %s", error)


def _metrics(subjects: Subjects, found: Measured, on_step: Callable[[], None]) -> None:
    task, recorders = subjects.task, {}
    assert task.evaluate is not None
    subject: tuple[tuple[str, Any], ...] = (
        ("original", subjects.original_runner),
        ("compressed", subjects.compressed_runner),
        ("simulation", subjects.compressed),
    )
    for name, runner in subject:
        recorders[name] = AgreementRecorder(predictor(subjects.original, runner))
        with unchanged(task.model, "evaluate"):
            found.metric[name] = evaluate_metric(task.evaluate, recorders[name], f"the {name} network")
        check_lengths(found.metric)
        on_step()
    before, after = found.metric["original"].scores, found.metric["compressed"].scores
    paired = same_inputs(recorders["original"], recorders["compressed"])
    if before is not None and after is not None and paired:
        found.interval = paired_interval(before, after, higher_is_better=task.higher_is_better)
    elif before is not None and after is not None:
        reason = said("evaluate used other samples, or another order, the second time; make it deterministic")
        found.unknown["compressed.metric_interval"] = reason
    else:
        found.unknown["compressed.metric_interval"] = (
            said("evaluate returns one number; return the scores of all samples")
        )
        found.unknown["samples.evaluation"] = said("evaluate returns one number, not the scores of all samples")
    agreement = prediction_agreement(recorders["original"], recorders["compressed"])
    found.agreement = agreement.share
    if agreement.share is None:
        found.unknown["compressed.agreement"] = agreement.reason or said("the outputs are not class scores")
    found.simulation_agreement = prediction_agreement(recorders["simulation"], recorders["compressed"]).share
    other, calls = predictor(subjects.original, subjects.original_runner), len(recorders["original"].fingerprints)
    found.warnings += dependence_warnings(task.evaluate, other, calls, list(found.metric.values()))


def predictor(network: Network, runner: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is called like the model, runs the network, and returns what the model would."""
    signature = network.signature
    assert signature is not None

    def predict(*args: Any, **kwargs: Any) -> Any:
        tensors = signature.flat(args, kwargs)
        if network.dynamic_batch:
            out = runner(*tensors)
        else:
            out = _in_batches(runner, tensors, next(x.shape[0] for x in network.example if x.ndim))
        return signature.build((out,) if isinstance(out, Tensor) else out)

    return predict


def _in_batches(runner: Callable[..., Any], tensors: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """Run a network with a fixed batch size: the last batch is padded with copies of its last sample."""
    results = []
    for part, real in cut(tensors, size):
        out = runner(*part)
        results.append(tuple(o[:real] for o in ((out,) if isinstance(out, Tensor) else out)))
    return tuple(torch.cat(c) for c in zip(*results, strict=True))


def _numbers(subjects: Subjects, samples: tuple[Any, ...], found: Measured) -> None:
    part = tuple(
        x[:8] if isinstance(x, Tensor) and x.ndim and subjects.original.dynamic_batch else x for x in samples
    )
    tensors = tuple(x for x in part if isinstance(x, Tensor))
    if not subjects.original.dynamic_batch:
        tensors = subjects.original.example
    numbers = check_numbers(subjects.compressed_runner, subjects.compressed, subjects.original, tensors)
    if not numbers.integer:
        found.warnings.append(
            said(
                "the engine's output is closer to the float network ({float}) than to the simulation "
                "({simulation}, relative): the engine computed part of the planned integers in float",
                float=f"{numbers.to_float:.3g}", simulation=f"{numbers.to_simulation:.3g}",
            )
        )
