"""Commands that look for what a network can bear: sensitivity."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.cli.common import chosen, console
from tersor.cli.options import EngineName, RecipeName, TaskFile
from tersor.cli.task_file import load_task
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
