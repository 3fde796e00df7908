"""What the commands share: consoles, arguments and options."""

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tersor.engines import ENGINES, automatic, target_names
from tersor.terminal import Terminal


def keys(module: str, table: str) -> str:
    """The keys of a table for a help text, read from its source: importing it would import PyTorch.

    >>> keys("checkpoints/layouts.py", "LAYOUTS")
    'compressed-tensors, gptq, gptq_v2, awq'
    """
    tree = ast.parse((Path(__file__).parents[1] / module).read_text(encoding="utf8"))
    (found,) = (n.value for n in tree.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == table)
    assert isinstance(found, ast.Dict)
    return ", ".join(ast.literal_eval(key) for key in found.keys if key is not None)


PRESETS = keys("recipe/recipe.py", "PRESETS")
LAYOUTS = keys("checkpoints/layouts.py", "LAYOUTS")

console = Terminal()
errors = Terminal(stderr=True)

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
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help=f"{PRESETS}, or a YAML file.")]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        "-e",
        help=f"{', '.join(ENGINES)} (`tersor engines` describes them); `compress` also takes auto: the fastest of "
        f"{', '.join(automatic())} that is installed.",
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option(
        "--target",
        help=f"The hardware to plan for: {', '.join(target_names())}; by default this machine. Figures are of this "
        "machine in any case.",
    ),
]
ChosenRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        help=f"{PRESETS}, or a YAML file; default: int8-static, for a language model int4-gptq.",
    ),
]
Layout = Annotated[str, typer.Option(help=f"File layout of a compressed language model: {LAYOUTS}.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the engine; default: all processors.", min=1)]


@contextlib.contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Run PyTorch with ``count`` threads inside the block; None keeps the current number."""
    import torch

    from tersor.engines.options import check_threads

    check_threads(count)
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
