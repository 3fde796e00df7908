"""The speed gate of a report: pairs of networks, of which one lacks what pruning did, timed side by side."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from tersor.engines import engine as find_engine
from tersor.engines.base import Runner
from tersor.engines.targets import cpuinfo, isa_flags
from tersor.engines.zeros import Weights, condition
from tersor.errors import TersorError
from tersor.files import temporary_folder
from tersor.measure import Report, interleave, ratio
from tersor.measure.gates import deflated
from tersor.measure.parts.gates import Pair, Zeros
from tersor.measure.speed import simulated
from tersor.network.network import Network
from tersor.pipeline.graph.auto import Choice
from tersor.pipeline.graph.measuring import ROUNDS, Subjects, single
from tersor.pipeline.graph.pruning.timed.candidates import plain
from tersor.pipeline.graph.reporting.zeros import LEAST, Weight, filled, pattern_of, share_of_zeros, weights_of
from tersor.pipeline.graph.solve import Solved
from tersor.pipeline.progress import Stages
from tersor.pipeline.subject import Subject
from tersor.recipe import Recipe
from tersor.task import Task
from tersor.task.unchanged import unchanged
from tersor.words import _, said

_log = logging.getLogger(__name__)


def with_gates(report: Report, subjects: Subjects, recipe: Recipe, made: Choice, stages: Stages) -> Report:
    """The report with the zeros of the network, and with a pair for them and for the removed channels.

    Pairs are timed unless the engine only simulates. A network that cannot be made or compiled is no reason to lose the
    report: a warning says so, and nothing is called faster.
    """
    solved: Solved = made.subject.details
    zeros, pairs, notes = _zeros(report, subjects, solved), list[Pair](), list[str]()
    wanted: list[tuple[Literal["zeros", "channels"], Any]] = []
    if zeros is not None:
        wanted.append(("zeros", lambda: filled(solved.network)))
    if any(record.macs[1] < record.macs[0] for record in made.subject.prunings):
        wanted.append(("channels", lambda: unpruned(subjects.task, recipe, made.subject)))
    for what, make in [] if simulated(report) else wanted:
        with stages.stage("measure", _("timing beside the network without its pruning"), ROUNDS) as bar:
            try:
                other = find_engine(subjects.engine).compile(
                    make(), threads=subjects.threads, precision=subjects.compressed_runner.precision
                )
                pairs.append(_timed(what, subjects, other, bar.at))
            except TersorError as error:
                _log.warning("no pair without %s: %s", what, error)
                notes.append(said(
                    "pruning is not called faster, since the network without it could not be timed ({reason})",
                    reason=str(error).splitlines()[0],
                ))  # fmt: skip
    if zeros is None and not pairs and not notes:
        return report
    warnings = (*notes, *report.warnings)
    return report.model_copy(update={"zeros": zeros, "pairs": tuple(pairs), "warnings": warnings})


def _zeros(report: Report, subjects: Subjects, solved: Solved) -> Zeros | None:
    """What zeros there are, if the float network had been pruned to have them."""
    floats, found = (list(weights_of(n)) for n in (solved.prepared.network, solved.network))
    if share_of_zeros(floats) < LEAST or share_of_zeros(found) < LEAST:
        return None
    with temporary_folder() as folder:
        names = subjects.compressed_runner.save(folder)
        paths = [Path(folder) / name for name in names]
        packed, estimated = deflated(paths)
        size = sum(path.stat().st_size for path in paths)
    pattern = pattern_of(floats, found)
    return Zeros(
        weights=sum(w.values.numel() for w in found),
        zeros=sum(int(w.zeros.sum()) for w in found),
        pattern=pattern,
        bytes=size,
        deflated=packed,
        estimated=estimated,
        condition=condition(report.engine, _facts(found, pattern)),
    )


def _facts(weights: list[Weight], pattern: str) -> Weights:
    kept = [w for w in weights if bool(w.zeros.any())]
    return Weights([tuple(w.values.shape) for w in kept], [w.bits for w in kept], pattern, isa_flags(cpuinfo()))


def _timed(what: Literal["zeros", "channels"], subjects: Subjects, other: Runner, on_round: Any) -> Pair:
    inputs = single(subjects.original)
    calls = {"without": lambda: other(*inputs), "result": lambda: subjects.compressed_runner(*inputs)}
    before = torch.get_num_threads()
    torch.set_num_threads(subjects.threads)
    try:
        found = interleave(calls, rounds=ROUNDS, progress=on_round)
    finally:
        torch.set_num_threads(before)
    faster = ratio(found["without"], found["result"])
    return Pair(without=what, speedup=faster.value, spread=(faster.low, faster.high))


def unpruned(task: Task, recipe: Recipe, subject: Subject) -> Network:
    """The task's network, whole, quantized as the recipe says but for what changes its numbers alone.

    It is calibrated on one batch, its weights are rounded to nearest and neither trained nor corrected: the time of a
    call depends on shapes and number formats, and not on these.

    Raises:
        TersorError: it cannot be quantized; or the network was captured by a version that did not keep it.
    """
    if subject.source is None or subject.host is None:
        raise TersorError("the network before pruning is not known: compress the task itself")
    whole = Subject(task.model, subject.host, subject.source, source=subject.source, seed=subject.seed)

    def first() -> Iterable[Any]:
        return islice(iter(task.calibration()), 1)

    with unchanged(task.model, "calibration"):
        made = subject.host.quantize(plain(recipe.quantize), whole, replace(task, calibration=first), Stages(False))
    return made.details.network
