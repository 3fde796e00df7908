"""The last stage of a compression: measure the result beside the original, and put both together."""

import logging
from dataclasses import replace

from torch import Tensor

from tersor.engines import engine as find_engine
from tersor.measure import Report
from tersor.measure.headline import fallbacks
from tersor.measure.layers import layer_noise
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.graph.auto import Choice, with_notes
from tersor.pipeline.graph.deployed import InEngine, inputs_of
from tersor.pipeline.graph.measuring import Subjects, measure
from tersor.pipeline.graph.reporting.figures import make_report
from tersor.pipeline.graph.reporting.gates import with_gates
from tersor.pipeline.graph.reporting.prunings import with_prunings
from tersor.pipeline.graph.reporting.trainings import with_trainings
from tersor.pipeline.graph.solve import Solved
from tersor.pipeline.progress import Stages
from tersor.recipe import Recipe
from tersor.task import Task
from tersor.words import _

NOISE_SAMPLES = 8
_log = logging.getLogger(__name__)


def completed(
    task: Task, recipe: Recipe, made: Choice, threads: int, stages: Stages, *, evaluate: bool, report: bool
) -> Compressed:
    """The result of a choice, measured if a report is wanted."""
    made = _beside_source(made)
    found = _report(task, recipe, made, threads, stages, evaluate) if report else None
    solved: Solved = made.subject.details
    original, target = solved.prepared.original, solved.prepared.policy.target
    deployed = InEngine(made.engine, made.runner, inputs_of(original), original.signature, target, _few(solved))
    return Compressed(made.subject.result(), recipe, found, deployed)


def _beside_source(made: Choice) -> Choice:
    """The choice, to be compared with the network of the user, where steps trained or pruned it before ``quantize``."""
    subject = made.subject
    if subject.source is None or not (subject.trainings or subject.prunings):
        return made
    solved: Solved = subject.details
    solved = replace(solved, prepared=replace(solved.prepared, original=subject.source))
    return replace(made, subject=replace(subject, details=solved))


def _few(solved: Solved, count: int = 4) -> tuple[Tensor, ...]:
    """Some samples; as many as the network requires, if its batch is fixed."""
    few = tuple(x for x in solved.samples if isinstance(x, Tensor))
    original = solved.prepared.original
    if original.dynamic_batch:
        return tuple(x[:count].clone() if x.ndim else x for x in few)
    return few if [x.shape for x in few] == [x.shape for x in original.example] else original.example


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
    found = with_gates(found, subjects, recipe, made, stages)
    found = with_prunings(found, made.subject.prunings)
    found = with_trainings(found, made.subject.trainings)
    for layer in fallbacks(found):
        _log.info("fell back to %s: %s (%s)", layer.executed, layer.name, layer.note)
    return with_notes(found, made.notes)
