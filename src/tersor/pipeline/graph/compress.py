"""The whole pipeline in one readable function."""

import logging
from pathlib import Path

from torch import Tensor

from tersor.engines import engine as find_engine
from tersor.engines.options import check_options
from tersor.measure import Report
from tersor.measure.environment import usable_processors
from tersor.measure.headline import fallbacks
from tersor.measure.layers import layer_noise
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.graph.auto import Choice, choose_engine, with_notes
from tersor.pipeline.graph.deployed import InEngine, inputs_of
from tersor.pipeline.graph.measuring import Subjects, measure
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.graph.reporting import make_report
from tersor.pipeline.graph.solve import Solved
from tersor.pipeline.progress import Stages
from tersor.recipe import Recipe, resolve
from tersor.task import Task, check_task
from tersor.task.unchanged import unchanged
from tersor.turns import in_turn
from tersor.words import _

NOISE_SAMPLES = 8
_log = logging.getLogger(__name__)


@in_turn
def compress(
    task: Task,
    recipe: Recipe | str | Path = "int8-static",
    engine: str = "openvino",
    *,
    target: str | None = None,
    threads: int | None = None,
    precision: str = "f32",
    evaluate: bool = True,
    report: bool = True,
    progress: bool = True,
) -> Compressed:
    """Compress a task's network for an engine and measure the result.

    Args:
        recipe: a Recipe, the name of a preset, or the path of a YAML file.
        engine: the name of an engine in ``tersor.engines.ENGINES``, as listed by ``tersor engines``; ``auto``
            compiles for all installed engines that compile quickly, and keeps the fastest faithful one.
        target: the hardware to plan for, such as ``x86-vnni``: one of the engine's ``targets``; None: this machine.
            Figures are always measured on this machine.
        threads: threads of the engine, at most two for each logical processor; None: all processors that this process
            may use.
        precision: the precision of float operators, ``f32`` or ``bf16`` where the engine computes in it; it is pinned
            and reported.
        evaluate: False skips the metric.
        report: False skips all measurements; ``Compressed.report`` is then None.
        progress: show progress bars on a terminal.

    Raises:
        TersorError: a subclass of it; the message names the layer or file, the value and the remedy.

    >>> import torch, tersor
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
    >>> data = [(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    >>> done = compress(Task("tiny", net, (torch.zeros(1, 3, 8, 8),), lambda: data), engine="torch", report=False)
    >>> done(data[0][0]).shape
    torch.Size([8, 8, 6, 6])
    """
    check_task(task, "compress")
    recipe = resolve(recipe)
    check_options(None if engine == "auto" else find_engine(engine), threads, precision)
    threads = threads or usable_processors()
    with Stages(progress) as stages:
        if engine == "auto":
            made = choose_engine(task, recipe, threads, precision, stages, target=target)
        else:
            made = in_engine(task, recipe, engine, threads, precision, stages, target)
        found = _report(task, recipe, made, threads, stages, evaluate) if report else None
    solved: Solved = made.subject.details
    original, target = solved.prepared.original, solved.prepared.policy.target
    deployed = InEngine(made.engine, made.runner, inputs_of(original), original.signature, target, _few(solved))
    return Compressed(made.subject.result(), recipe, found, deployed)


def _few(solved: Solved, count: int = 4) -> tuple[Tensor, ...]:
    """Some samples; as many as the network requires, if its batch is fixed."""
    few = tuple(x for x in solved.samples if isinstance(x, Tensor))
    original = solved.prepared.original
    if original.dynamic_batch:
        return tuple(x[:count].clone() if x.ndim else x for x in few)
    return few if [x.shape for x in few] == [x.shape for x in original.example] else original.example


def in_engine(
    task: Task,
    recipe: Recipe,
    engine: str,
    threads: int,
    precision: str,
    stages: Stages,
    target: str | None = None,
) -> Choice:
    """The network compressed for one engine, and compiled."""
    module = find_engine(engine)
    _log.info("engine %s %s, recipe %s, %d threads, %s", engine, module.version(), recipe.name, threads, precision)
    subject = start(task, recipe, GraphHost(module.policy(target)), stages)
    with unchanged(task.model, "calibration"):
        for step in recipe.steps:
            subject = step(subject, task, stages)
    solved: Solved = subject.details
    with stages.stage("compile", _("compiling")):
        return Choice(engine, subject, module.compile(solved.network, threads=threads, precision=precision))


def _report(task: Task, recipe: Recipe, made: Choice, threads: int, stages: Stages, evaluate: bool) -> Report:
    """The report: original and compressed network measured in the same engine."""
    solved: Solved = made.subject.details
    prepared = solved.prepared
    with stages.stage("compile", _("compiling the original")):
        module = find_engine(made.engine)
        original = module.compile(prepared.original, threads=threads, precision=made.runner.precision)
    subjects = Subjects(task, made.engine, prepared.original, solved.network, original, made.runner, threads)
    measured = measure(subjects, solved.samples, stages, evaluate)
    with stages.stage("measure", _("error of every layer")):
        few = tuple(x[:NOISE_SAMPLES] if isinstance(x, Tensor) and x.ndim else x for x in solved.samples)
        noise = layer_noise(prepared.network, solved.network, few, {layer.node for layer in prepared.plan.layers})
    with stages.stage("measure", _("checking the numbers of every operator")):
        account = module.audit(solved.network, made.runner, tuple(x for x in solved.samples if isinstance(x, Tensor)))
    found = make_report(subjects, recipe, solved, measured, account, noise, stages.seconds)
    for layer in fallbacks(found):
        _log.info("fell back to %s: %s (%s)", layer.executed, layer.name, layer.note)
    return with_notes(found, made.notes)
