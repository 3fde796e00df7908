"""The commands that take a task or a language model: inspect, compress, calibrate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.cli.common import chosen, console, working
from tersor.cli.options import (
    CalibrationData,
    ChosenRecipe,
    Device,
    EngineName,
    EngineOfTask,
    Evaluate,
    HeldOutData,
    Layout,
    Length,
    Precision,
    RecipeName,
    Source,
    TargetName,
    TargetOfTask,
    TaskFile,
    Threads,
    Windows,
    using_threads,
)
from tersor.cli.task_file import find_task, load_task
from tersor.errors import TaskError
from tersor.words import _, plural, said

_FOR_TASKS, _FOR_FOLDERS = "int8-static", "int4-gptq"


def inspect(
    context: typer.Context,
    task: Source,
    recipe: ChosenRecipe = None,
    engine: EngineOfTask = "openvino",
    target: TargetOfTask = None,
    layout: Layout = "compressed-tensors",
) -> dict[str, Any]:
    """Show what would be quantized, what not and why, and the predicted size; no data is run."""
    from tersor.engines import engine as find_engine
    from tersor.pipeline.graph.prepare import predicted_bytes, prepare
    from tersor.recipe import resolve
    from tersor.report.tables.plan import plan_data, plan_table

    check_source(context, task)
    if task.is_dir():
        return _inspect_folder(task, recipe or _FOR_FOLDERS, layout)
    found, asked = load_task(task), resolve(recipe or _FOR_TASKS)
    with working(_("capturing the network")):
        prepared = prepare(found, asked, find_engine(engine).policy(target))
    notes = prepared.original.notes
    if found.train is None and any(step.name == "train" for step in asked.steps):
        notes = (*notes, said("the task has no training data (Task.train), which the step `train` needs"))
    planned = (prepared.plan, *predicted_bytes(prepared.network, prepared.plan), notes, asked)
    console.print(plan_table(*planned))
    return plan_data(*planned)


def compress(
    context: typer.Context,
    task: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; it must not exist yet.")],
    recipe: ChosenRecipe = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
    threads: Threads = None,
    device: Device = None,
    engine: EngineOfTask = "openvino",
    target: TargetOfTask = None,
    precision: Precision = "f32",
    evaluate: Evaluate = True,
    data: CalibrationData = None,
    valid: HeldOutData = None,
    samples: Windows = 128,
    length: Length = None,
    layout: Layout = "compressed-tensors",
) -> dict[str, Any]:
    """Compress, measure, and write a folder with the network, report.json and report.html.

    A language model is a folder in the Hugging Face layout, read and written block by block; an interrupted run
    resumes.

    `tersor compress llama/ -r int4-gptq --data train.txt --valid valid.txt -o small`
    """
    from tersor.checkpoints.destination import check_folder

    check_source(context, task)
    check_folder(out, force, () if task.is_dir() else (find_task(task)[0],))
    if task.is_dir():
        options = {"evaluate": valid, "layout": layout, "samples": samples, "length": length, "device": device}
        with using_threads(threads):
            _compress_folder(task, out, recipe or _FOR_FOLDERS, data, force=force, **options)
    else:
        from tersor.pipeline.graph.compress import compress as run

        options = {"target": target, "threads": threads, "precision": precision, "evaluate": evaluate, "device": device}
        make_from_task(task, out, force, run, recipe or _FOR_TASKS, engine, **options)
    return written(out)


def written(out: Path) -> dict[str, Any]:
    """Name the page to open; the folder and its report, for JSON."""
    console.print("\n" + _("Open {page} in a browser.", page=out / "report.html"), soft_wrap=True)
    return {"folder": str(out), "report": json.loads((out / "report.json").read_text(encoding="utf-8"))}


def make_from_task(source: Path, out: Path, force: bool, run: Callable[..., Any], *what: Any, **options: Any) -> None:
    """What ``run`` makes of a task, saved and printed."""
    from tersor.checkpoints.destination import check_folder
    from tersor.files import working_folder
    from tersor.measure import read_report
    from tersor.pipeline.compressed import save_in
    from tersor.report import print_report

    with working_folder(out) as parts:  # from here on, so that a second run is refused at once
        task = load_task(source)
        check_folder(out, force, size=sum(p.nbytes for p in task.model.parameters()))
        save_in(parts, run(task, *what, progress=not chosen().quiet, **options), out, force)
    # Saving adds what it found of the files.
    print_report(read_report(out), console)


def _compress_folder(source: Path, out: Path, *what: Any, **options: Any) -> None:
    try:
        from tersor.pipeline.folder.compress import compress_folder
        from tersor.report.language import print_language_report

        found = compress_folder(source, out, *what, progress=not chosen().quiet, **options)
    except KeyboardInterrupt as error:
        error.add_note(_what_resumes(out))
        raise
    print_language_report(found.report, console)


def _what_resumes(out: Path) -> str:
    """What an interrupted run leaves, and what the same command does next."""
    from tersor.files import finished_blocks

    count = finished_blocks(out)
    if not count:
        return _("no block was finished, so the same command starts from the beginning")
    return plural(
        "{count} block is finished, and the same command resumes after it",
        "{count} blocks are finished, and the same command resumes after them",
        count,
    )


def check_source(context: typer.Context, source: Path) -> None:
    """Refuse a source that does not exist, and options that its kind would ignore."""
    folder = source.is_dir()
    if not folder:
        find_task(source)
    of_tasks = (
        "engine", "target", "precision", "evaluate", "max_drop", "min_speedup", "max_bytes", "budget", "narrower",
    )  # fmt: skip
    of_folders = ("data", "valid", "samples", "length", "layout", "bits")
    for name in of_tasks if folder else of_folders:
        given = context.get_parameter_source(name)
        if given is not None and given.name == "COMMANDLINE":
            kinds = ("tasks", "folder of a language model") if folder else ("language models", "task")
            option = name.replace("_", "-")
            raise TaskError(f"--{option} is an option for {kinds[0]}, but {source} is a {kinds[1]}; leave it out")


def _inspect_folder(folder: Path, recipe: str, layout: str) -> dict[str, Any]:
    from tersor.pipeline.folder.job import prepare_job
    from tersor.pipeline.folder.write import check_readable
    from tersor.report.tables.plan import folder_data, folder_table

    with working(_("reading headers")):
        job = prepare_job(folder, recipe, None, layout=layout, needs=False)
        check_readable(job)
    console.print(folder_table(job.plans, job.preflight))
    return folder_data(job.plans, job.preflight)


def calibrate(
    task: TaskFile,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare all range estimators, site by site.")
    ] = False,
    site: Annotated[
        str | None, typer.Option(help="Draw the histogram of this site (a glob) with its thresholds.")
    ] = None,
    recipe: RecipeName = "int8-static",
    engine: EngineName = "openvino",
    target: TargetName = None,
) -> dict[str, Any]:
    """Only observe ranges: what each estimator would choose, its error, and the quality of the data."""
    from tersor.pipeline.graph.calibration import calibrated
    from tersor.report.tables.calibration import calibration_data, comparison, drawing, ranges, verdict

    found = calibrated(load_task(task), recipe, engine, target=target, progress=not chosen().quiet)
    console.print(comparison(found) if compare else ranges(found))
    if site is not None:
        console.print(drawing(found, site))
    console.print(verdict(found))
    return calibration_data(found)


def outliers(
    task: TaskFile,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a page: a .html file, or a folder for outliers.html.")
    ] = None,
    layer: Annotated[str, typer.Option(help="Only layers whose name matches (a glob).")] = "*",
    samples: Annotated[int, typer.Option(help="Number of calibration samples.", min=1)] = 64,
) -> dict[str, Any]:
    """Find layers whose inputs have outliers, what these cost in int8, and what helps."""
    from tersor.pipeline.graph.outliers import outliers as find
    from tersor.pipeline.graph.outliers import page_file

    if out is not None:
        page_file(out)
    found = find(load_task(task), samples, layer, progress=not chosen().quiet)
    page = None if out is None else found.to_html(out)
    console.print(found)
    if page is not None:
        console.print("\n" + _("Open {page} in a browser.", page=page), soft_wrap=True)
    return json.loads(found.to_json())


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("build/demo"),
    engine: EngineName = "openvino",
    recipe: RecipeName = "int8-static",
) -> dict[str, Any]:
    """Compress the built-in example, a small residual network that classifies handwritten digits."""
    from tersor.checkpoints.destination import check_folder
    from tersor.demo import task
    from tersor.pipeline.graph.compress import compress as run
    from tersor.report import print_report

    check_folder(out, force=True)
    done = run(task(), recipe, engine, progress=not chosen().quiet)
    done.save(out, force=True)
    assert done.report is not None
    print_report(done.report, console)
    return written(out)
