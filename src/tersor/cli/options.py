"""What the commands share: where they print, their arguments and options."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tersor.recipe import PRESETS

console = Console()
errors = Console(stderr=True)

TaskFile = Annotated[
    Path,
    typer.Argument(
        help="A Python file with a function `task() -> tersor.Task`; `file.py:name` names another."
    ),
]
Source = Annotated[
    Path,
    typer.Argument(
        help="A Python file with a function `task() -> tersor.Task` (`file.py:name` names another), or the folder of a "
        "language model in the Hugging Face layout."
    ),
]
RecipeName = Annotated[
    str, typer.Option("--recipe", "-r", help=f"{', '.join(PRESETS)}, or a YAML file.")
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        "-e",
        help="openvino, onnxruntime, torch (a simulation), tensorrt (files only); compress also takes auto: the "
        "fastest that is here.",
    ),
]
ChosenRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        help=f"{', '.join(PRESETS)}, or a YAML file; by default int8-static, of a language model int4-gptq.",
    ),
]
Layout = Annotated[
    str, typer.Option(help="Of a language model's files: compressed-tensors, gptq, gptq_v2 or awq.")
]
Threads = Annotated[int | None, typer.Option(help="Threads of the engine; by default all processors.", min=1)]


@contextlib.contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """PyTorch with so many threads while inside; None: as it is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
