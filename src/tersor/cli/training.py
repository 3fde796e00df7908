"""The command that trains: finetune."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.cli.making import make_from_task, written
from tersor.cli.options import EVALUATE, PRECISION, EngineName, RecipeName, TargetName, TaskFile, Threads
from tersor.cli.task_file import find_task, load_task
from tersor.words import _


def finetune(
    task: TaskFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; it must not exist yet.")],
    recipe: RecipeName = "int8-qat",
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option(help="Keeps the state of every epoch; the same command goes on from there if it was stopped."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of training; default: as the recipe says.", min=0)] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where training runs: cpu, or an accelerator of PyTorch such as cuda; default: cpu."),
    ] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(help="Where losses are logged, such as tensorboard or wandb; repeat the option for several."),
    ] = None,
    threads: Threads = None,
    engine: EngineName = "openvino",
    target: TargetName = None,
    precision: Annotated[str, typer.Option(help=PRECISION)] = "f32",
    evaluate: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help=EVALUATE)] = True,
) -> dict[str, Any] | None:
    """Train a network with its quantizers, compress and measure it, and write a folder as `compress` does.

    The task gives the batches (`train`). Without `loss`, the network learns to give its own FP32 results.

    What is better stays: the trained network, or the same recipe without training; the report tells.

    Several processes: `accelerate launch -m tersor.cli finetune task.py -o small`

    `tersor finetune task.py -r int4-qat -e torch --folder state -o small`
    """
    from tersor.checkpoints.destination import check_folder
    from tersor.pipeline.graph.finetune import finetune as run
    from tersor.training.accelerator import is_first_process

    options = {
        "folder": folder, "epochs": epochs, "device": device, "trackers": tracker or (), "target": target,
        "threads": threads, "precision": precision, "evaluate": evaluate,
    }  # fmt: skip
    if not is_first_process():
        run(load_task(task), recipe, engine, **options)  # type: ignore[arg-type]
        return None
    check_folder(out, force, (find_task(task)[0],))
    try:
        make_from_task(task, out, force, run, recipe, engine, **options)
    except KeyboardInterrupt as error:
        if folder is not None:
            error.add_note(_("the epochs that were finished are in {folder}, and the same command goes on after them",
                             folder=folder))  # fmt: skip
        raise
    return written(out)
