"""The whole way in one readable function."""

from pathlib import Path

from torch import Tensor

from tersor.engines import engine as find_engine
from tersor.errors import TaskError
from tersor.measure.environment import usable_processors
from tersor.measure.layers import layer_noise
from tersor.pipeline.compressed import Compressed
from tersor.pipeline.graph.audit import audit
from tersor.pipeline.graph.auto import choose_engine, with_notes
from tersor.pipeline.graph.measuring import Subjects, measure
from tersor.pipeline.graph.quantize import GraphHost, start
from tersor.pipeline.graph.reporting import make_report
from tersor.pipeline.graph.solve import Solved
from tersor.pipeline.progress import Stages
from tersor.recipe import Recipe, resolve
from tersor.task import Task

NOISE_SAMPLES = 8


def compress(
    task: Task,
    recipe: Recipe | str | Path = "int8-static",
    engine: str = "openvino",
    *,
    threads: int | None = None,
    precision: str = "f32",
    evaluate: bool = True,
    report: bool = True,
    progress: bool = True,
) -> Compressed:
    """Compress a task's network for an engine and measure what that gained.

    Args:
        recipe: a Recipe, the name of a preset, or the path of a YAML file.
        engine: ``openvino``, ``onnxruntime``, ``torch`` (a simulation) or ``tensorrt`` (files only); ``auto``
            compiles for the first two, where they are installed, and keeps the faster that is faithful.
        threads: threads of the engine; all processors that this process may use, if None.
        precision: what float operators compute in, ``f32`` or ``bf16``; it is pinned and reported.
        evaluate: False leaves the metric out.
        report: False measures nothing at all; ``Compressed.report`` is then None.
        progress: show bars on a terminal.

    Raises:
        TersorError: one of its kinds, naming the layer or file, the value and the remedy.

    >>> import torch, tersor
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
    >>> data = [(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(k)),) for k in range(2)]
    >>> done = compress(Task("tiny", net, (torch.zeros(1, 3, 8, 8),), lambda: data), engine="torch", report=False)
    >>> done(data[0][0]).shape
    torch.Size([8, 8, 6, 6])
    """
    if not isinstance(task, Task):
        raise TaskError(f"{task!r:.80} is no tersor.Task; the folder of a language model is for tersor.compress_folder")
    recipe, threads, choice = resolve(recipe), threads or usable_processors(), None
    with Stages(progress) as stages:
        if engine == "auto":
            choice = choose_engine(task, recipe, threads, precision, stages)
            engine = choice.engine
        module = find_engine(engine)
        subject = start(task, recipe, GraphHost(module.policy()), stages)
        for step in recipe.steps:
            subject = step(subject, task, stages)
        solved: Solved = subject.details
        prepared = solved.prepared
        with stages.stage("compile", "compiling"):
            runner = module.compile(solved.network, threads=threads, precision=precision)
        inputs = tuple(
            {
                "name": name,
                "dtype": str(x.dtype).removeprefix("torch."),
                "shape": _shape(x, prepared.original.dynamic_batch),
            }
            for name, x in zip(prepared.original.input_names, prepared.original.example, strict=True)
        )
        done = Compressed(engine, recipe, runner, None, inputs, solved.network, solved.prepared.plan)
        if not report:
            return done
        with stages.stage("compile", "compiling the original"):
            original = module.compile(prepared.original, threads=threads, precision=precision)
        subjects = Subjects(task, engine, prepared.original, solved.network, original, runner, threads)
        measured = measure(subjects, solved.samples, stages, evaluate)
        with stages.stage("measure", "error of every layer"):
            few = tuple(x[:NOISE_SAMPLES] if isinstance(x, Tensor) and x.ndim else x for x in solved.samples)
            names = {layer.node for layer in solved.prepared.plan.layers}
            noise = layer_noise(solved.prepared.network, solved.network, few, names)
        rows = audit(solved.prepared.plan, runner)
        found = make_report(subjects, recipe, solved, measured, rows, noise, stages.seconds)
        found = with_notes(found, choice)
    return Compressed(engine, recipe, runner, found, inputs, solved.network, solved.prepared.plan)


def _shape(x: Tensor, dynamic: bool) -> list[int | None]:
    return [None if dynamic and k == 0 else int(n) for k, n in enumerate(x.shape)]
