"""Commands that look for what a network can bear: sensitivity, optimize."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.cli.common import chosen, console
from tersor.cli.making import written
from tersor.cli.options import PRECISION, EngineName, EngineOfTask, RecipeName, TargetName, TaskFile, Threads
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
    task: TaskFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; it must not exist yet.")],
    max_drop: Annotated[
        str | None,
        typer.Option(help="What may be lost: points of an accuracy (0.5), the metric's own unit, or a share (0.5%)."),
    ] = None,
    min_speedup: Annotated[
        str | None, typer.Option(help="How many times as fast as the original network in the same engine, such as 2.")
    ] = None,
    max_bytes: Annotated[str | None, typer.Option(help="The largest size of the files, such as 2MB.")] = None,
    budget: Annotated[str, typer.Option(help="The time for all, such as 90s, 30m or 2h.")] = "30m",
    recipe: RecipeName = "int8-static",
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
    narrower: Annotated[
        bool, typer.Option("--narrower/--same-shape", help="Whether layers may become narrower and branches go.")
    ] = True,
    engine: EngineOfTask = "auto",
    target: TargetName = None,
    threads: Threads = None,
    precision: Annotated[str, typer.Option(help=PRECISION)] = "f32",
) -> dict[str, Any]:
    """Search for the fastest network that loses no more than you allow, and prove that it does.

    Layers stay in float where too much is lost, and become narrower where there is room; every candidate is timed and
    evaluated. Half of the samples choose, the others judge. The folder holds the best one, and below `front` those that
    lose less or are faster. The exit code is 1 if the contract is not kept.

    If it is stopped, the same command goes on where it was.

    `tersor optimize task.py --max-drop 0.5 --budget 30m -o best`
    """
    from tersor.checkpoints.destination import check_folder
    from tersor.errors import TersorError
    from tersor.measure import read_report
    from tersor.report import print_report
    from tersor.search.optimize import optimize as find

    check_folder(out, force, (find_task(task)[0],))
    options = {"max_drop": max_drop, "min_speedup": min_speedup, "max_bytes": max_bytes, "budget": budget}
    try:
        find(
            load_task(task), recipe, engine, **options, folder=out, force=force, narrower=narrower, target=target,
            threads=threads, precision=precision, progress=not chosen().quiet,
        )  # fmt: skip
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
