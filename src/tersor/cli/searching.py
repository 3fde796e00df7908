"""Commands that look for what a network can bear: sensitivity, optimize."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.cli.common import chosen, console
from tersor.cli.making import check_source, written
from tersor.cli.options import (
    OF_FOLDERS,
    OF_TASKS,
    CalibrationData,
    ChosenRecipe,
    EngineName,
    EngineOfTask,
    HeldOutData,
    Layout,
    Length,
    Precision,
    RecipeName,
    Source,
    TargetOfTask,
    TaskFile,
    Threads,
    Windows,
    using_threads,
)
from tersor.cli.task_file import find_task, load_task
from tersor.words import _


def sensitivity(
    task: TaskFile,
    recipe: RecipeName = "int8-static",
    engine: EngineName = "openvino",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a page: a .html file, or a folder for sensitivity.html.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Number of calibration samples.", min=1)] = 64,
    measured: Annotated[int, typer.Option(help="Of how many layers the divergence is measured.", min=0)] = 12,
    metric: Annotated[
        bool, typer.Option("--metric/--no-metric", help="Also evaluate the task's metric behind every kind of layers.")
    ] = False,
) -> dict[str, Any]:
    """Find the layers that quantization costs most, and those worth keeping in float.

    Each operator is quantized alone, the others in float. Then one kind of layer after the other is quantized: where
    the divergence rises is where accuracy is lost.

    `tersor sensitivity task.py -r int8-static -o build/sensitivity.html`
    """
    from tersor.pipeline.graph.outliers import page_file
    from tersor.search.sensitivity import sensitivity as find

    if out is not None:
        page_file(out, "sensitivity.html")
    found = find(
        load_task(task), recipe, engine, samples=samples, measured=measured, metric=metric,
        progress=not chosen().quiet,
    )  # fmt: skip
    page = None if out is None else found.to_html(out)
    console.print(found)
    if page is not None:
        console.print("\n" + _("Open {page} in a browser.", page=page), soft_wrap=True)
    return json.loads(found.to_json())


def optimize(
    context: typer.Context,
    task: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; it must not exist yet.")],
    max_drop: Annotated[
        str | None,
        typer.Option(
            help="What may be lost: points of an accuracy (0.5), the metric's own unit, or a share (0.5%).",
            rich_help_panel=OF_TASKS,
        ),
    ] = None,
    min_speedup: Annotated[
        str | None,
        typer.Option(
            help="How many times as fast as the original network in the same engine, such as 2.",
            rich_help_panel=OF_TASKS,
        ),
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="The largest size of the files, such as 2MB.", rich_help_panel=OF_TASKS)
    ] = None,
    budget: Annotated[
        str, typer.Option(help="The time for all, such as 90s, 30m or 2h.", rich_help_panel=OF_TASKS)
    ] = "30m",
    recipe: ChosenRecipe = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
    narrower: Annotated[
        bool,
        typer.Option(
            "--narrower/--same-shape", help="Whether layers may become narrower and branches go.",
            rich_help_panel=OF_TASKS,
        ),
    ] = True,
    threads: Threads = None,
    engine: EngineOfTask = "auto",
    target: TargetOfTask = None,
    precision: Precision = "f32",
    bits: Annotated[
        float | None,
        typer.Option(help="The mean bits of a language model's weights, such as 3.5.", rich_help_panel=OF_FOLDERS),
    ] = None,
    data: CalibrationData = None,
    valid: HeldOutData = None,
    samples: Windows = 128,
    length: Length = None,
    layout: Layout = "compressed-tensors",
) -> dict[str, Any]:
    """Search for the fastest network that loses no more than you allow, and prove that it does.

    Layers stay in float where too much is lost, and become narrower where there is room; every candidate is timed and
    evaluated. Half of the samples choose, the others judge. The folder holds the best one, and below `front` those that
    lose less or are faster. The exit code is 1 if the contract is not kept.

    If it is stopped, the same command goes on where it was.

    The weights of a language model get 2, 3, 4 or 8 bits each, so that their mean has `--bits` and least is lost.

    `tersor optimize task.py --max-drop 0.5 --budget 30m -o best`

    `tersor optimize llama/ --bits 3.5 --data train.txt --valid valid.txt -o small`
    """
    from tersor.checkpoints.destination import check_folder

    check_source(context, task)
    check_folder(out, force, () if task.is_dir() else (find_task(task)[0],))
    if task.is_dir():
        options = {"evaluate": valid, "layout": layout, "samples": samples, "length": length, "force": force}
        with using_threads(threads):
            _mixed(task, out, bits, recipe or "int4-gptq", data, **options)
        return written(out)
    asked = {"max_drop": max_drop, "min_speedup": min_speedup, "max_bytes": max_bytes, "budget": budget}
    options = {"narrower": narrower, "target": target, "threads": threads, "precision": precision}
    return _search(task, out, recipe or "int8-static", engine, force=force, **asked, **options)


def _search(task: Path, out: Path, recipe: str, engine: str, **options: Any) -> dict[str, Any]:
    from tersor.errors import TersorError
    from tersor.measure import read_report
    from tersor.report import print_report
    from tersor.search.optimize import optimize as find

    try:
        find(load_task(task), recipe, engine, folder=out, progress=not chosen().quiet, **options)
    except KeyboardInterrupt as error:
        error.add_note(_("what was measured is kept, and the same command goes on from there"))
        raise
    report = read_report(out)
    print_report(report, console)
    found = written(out)
    if report.contract is not None and not report.contract.kept:
        raise TersorError(
            f"the contract is not kept by anything that was tried; the nearest network is in {out}: allow more, give "
            "more time, or train"
        )
    return found


def _mixed(source: Path, out: Path, bits: float | None, recipe: str, data: Path | None, **options: Any) -> None:
    from tersor.errors import RecipeError
    from tersor.report.language import print_language_report
    from tersor.search.bits import optimize_folder

    if bits is None:
        raise RecipeError("nothing is asked for: give the mean bits of the weights, such as --bits 3.5")
    found = optimize_folder(source, out, bits, recipe, data, progress=not chosen().quiet, **options)
    print_language_report(found.report, console)
