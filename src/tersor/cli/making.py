"""The commands that take a task or a language model: inspect, compress, calibrate."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.cli.options import (
    ChosenRecipe,
    EngineName,
    Layout,
    RecipeName,
    Source,
    TargetName,
    TaskFile,
    Threads,
    console,
    using_threads,
)
from tersor.cli.task_file import find_task, load_task
from tersor.errors import TaskError
from tersor.words import _, plural

_OF_TASKS, _OF_FOLDERS = "int8-static", "int4-gptq"


def inspect(
    context: typer.Context,
    task: Source,
    recipe: ChosenRecipe = None,
    engine: EngineName = "openvino",
    target: TargetName = None,
    layout: Layout = "compressed-tensors",
) -> None:
    """Show what would be quantized, what not and why, and the predicted size; no data is run."""
    from tersor.engines import engine as find_engine
    from tersor.pipeline.graph.prepare import predicted_bytes, prepare
    from tersor.recipe import resolve
    from tersor.report.plan import plan_table

    _check_source(context, task)
    if task.is_dir():
        _inspect_folder(task, recipe or _OF_FOLDERS, layout)
        return
    with console.status("capturing the network"):
        prepared = prepare(load_task(task), resolve(recipe or _OF_TASKS), find_engine(engine).policy(target))
    console.print(
        plan_table(prepared.plan, *predicted_bytes(prepared.network, prepared.plan), prepared.original.notes)
    )


def compress(
    context: typer.Context,
    task: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; it must not exist yet.")],
    recipe: ChosenRecipe = None,
    engine: EngineName = "openvino",
    target: TargetName = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Measure the metric of original and compressed.")
    ] = True,
    threads: Threads = None,
    precision: Annotated[str, typer.Option(help="Precision of float operators: f32 or bf16.")] = "f32",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Calibration data of a language model: a text file, or a .jsonl file of records with `text` or "
            "`messages`.",
            dir_okay=False,
        ),
    ] = None,
    valid: Annotated[
        Path | None,
        typer.Option(help="Held-out data of a language model, as --data, to report perplexity on.", dir_okay=False),
    ] = None,
    samples: Annotated[int, typer.Option(help="Number of windows of --data.", min=1)] = 128,
    length: Annotated[
        int | None, typer.Option(help="Tokens per window; default: 512, or fewer if the model takes fewer.", min=2)
    ] = None,
    layout: Layout = "compressed-tensors",
) -> None:
    """Compress, measure, and write a folder with the network, report.json and report.html.

    A language model is a folder in the Hugging Face layout, read and written block by block; an interrupted run
    resumes.

    `tersor compress llama/ -r int4-gptq --data train.txt --valid valid.txt -o small`
    """
    from tersor.checkpoints.destination import check_folder
    from tersor.files import working_folder
    from tersor.measure import read_report
    from tersor.pipeline.compressed import save_in
    from tersor.pipeline.graph.compress import compress as run
    from tersor.report import print_report

    _check_source(context, task)
    check_folder(out, force, () if task.is_dir() else (find_task(task)[0],))
    if task.is_dir():
        options = {"evaluate": valid, "layout": layout, "samples": samples, "length": length, "force": force}
        with using_threads(threads):
            _compress_folder(task, out, recipe or _OF_FOLDERS, data, **options)
    else:
        options = {"target": target, "threads": threads, "precision": precision, "evaluate": evaluate}
        with working_folder(out) as parts:  # from here on, so that a second run is refused at once
            loaded = load_task(task)
            check_folder(out, force, size=sum(p.nbytes for p in loaded.model.parameters()))
            save_in(parts, run(loaded, recipe or _OF_TASKS, engine, **options), out, force)
        # Saving adds what it found of the files.
        print_report(read_report(out), console)
    console.print(f"\nwritten to {out}; open {out / 'report.html'}", soft_wrap=True)


def _compress_folder(source: Path, out: Path, *what: Any, **options: Any) -> None:
    try:
        from tersor.pipeline.folder.compress import compress_folder
        from tersor.report.language import print_language_report

        found = compress_folder(source, out, *what, **options)
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


def _check_source(context: typer.Context, source: Path) -> None:
    """Refuse a source that does not exist, and options that its kind would ignore."""
    folder = source.is_dir()
    if not folder:
        find_task(source)
    of_tasks = ("engine", "target", "precision", "evaluate")
    of_folders = ("data", "valid", "samples", "length", "layout")
    for name in of_tasks if folder else of_folders:
        given = context.get_parameter_source(name)
        if given is not None and given.name == "COMMANDLINE":
            kinds = ("tasks", "folder of a language model") if folder else ("language models", "task")
            raise TaskError(f"--{name} is an option for {kinds[0]}, but {source} is a {kinds[1]}; leave it out")


def _inspect_folder(folder: Path, recipe: str, layout: str) -> None:
    from tersor.pipeline.folder.job import prepare_job
    from tersor.pipeline.folder.write import check_readable
    from tersor.report.language import plan_of_folder

    with console.status("reading headers"):
        job = prepare_job(folder, recipe, None, layout=layout, needs=False)
        check_readable(job)
    console.print(plan_of_folder(job.plans, job.preflight))


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
) -> None:
    """Only observe ranges: what each estimator would choose, its error, and the quality of the data."""
    from tersor.pipeline.graph.calibration import calibrated
    from tersor.report.calibration import comparison, drawing, ranges, verdict

    found = calibrated(load_task(task), recipe, engine, target=target)
    console.print(comparison(found) if compare else ranges(found))
    if site is not None:
        console.print(drawing(found, site))
    console.print(verdict(found))


def outliers(
    task: TaskFile,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a page: a .html file, or a folder for outliers.html.")
    ] = None,
    layer: Annotated[str, typer.Option(help="Only layers whose name matches (a glob).")] = "*",
    samples: Annotated[int, typer.Option(help="Number of calibration samples.", min=1)] = 64,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, with the range of every channel.")] = False,
) -> None:
    """Find layers whose inputs have outliers, what these cost in int8, and what helps."""
    from tersor.pipeline.graph.outliers import outliers as find
    from tersor.pipeline.graph.outliers import page_file

    if out is not None:
        page_file(out)
    found = find(load_task(task), samples, layer)
    page = None if out is None else found.to_html(out)
    if json:
        typer.echo(found.to_json())
        return
    console.print(found)
    if page is not None:
        console.print(f"\nwritten to {page}", soft_wrap=True)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("build/demo"),
    engine: EngineName = "openvino",
    recipe: RecipeName = "int8-static",
) -> None:
    """Compress the built-in example, a small residual network that classifies handwritten digits."""
    from tersor.checkpoints.destination import check_folder
    from tersor.demo import task
    from tersor.pipeline.graph.compress import compress as run
    from tersor.report import print_report

    check_folder(out, force=True)
    done = run(task(), recipe, engine)
    done.save(out, force=True)
    assert done.report is not None
    print_report(done.report, console)
    console.print(
        f"\nwritten to {out}; open {out / 'report.html'} in a browser", soft_wrap=True
    )
