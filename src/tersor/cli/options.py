"""What the commands share: arguments and options."""

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tersor.engines import ENGINES, automatic, decoding, target_names
from tersor.words import said


def keys(module: str, table: str) -> str:
    """The keys of a table for a help text, read from its source: importing it would import PyTorch.

    >>> keys("checkpoints/layouts.py", "LAYOUTS")
    'compressed-tensors, gptq, gptq_v2, awq'
    """
    tree = ast.parse((Path(__file__).parents[1] / module).read_text(encoding="utf8"))
    (found,) = (n.value for n in tree.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == table)
    assert isinstance(found, ast.Dict)
    return ", ".join(ast.literal_eval(key) for key in found.keys if key is not None)


# What stands in the places of the help texts, which are templates, so that catalogues hold no lists of names.
VALUES = {
    "presets": keys("recipe/presets.py", "PARTS"),
    "layouts": ", ".join(
        (keys("checkpoints/layouts.py", "LAYOUTS"), keys("checkpoints/sparse/layouts.py", "SPARSE_LAYOUTS"))
    ),
    "engines": ", ".join(ENGINES),
    "automatic": ", ".join(automatic()),
    "decoding": ", ".join(decoding()),
    "targets": ", ".join(target_names()),
}
OF_TASKS, OF_FOLDERS = said("Options for task files"), said("Options for folders of language models")

TaskFile = Annotated[
    Path,
    typer.Argument(help="A Python file with a function `task() -> tersor.Task`; `file.py:name` names another."),
]
Source = Annotated[
    Path,
    typer.Argument(
        help="A Python file with a function `task() -> tersor.Task` (`file.py:name` names another), or the folder of a "
        "language model in the Hugging Face layout."
    ),
]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="{presets}, or a YAML file.")]
_ENGINE = "{engines} (`tersor engines` describes them)"
_TARGET = "The hardware to plan for: {targets}; default: this machine. Figures are of this machine in any case."
EngineName = Annotated[str, typer.Option("--engine", "-e", help=f"{_ENGINE}.")]
TargetName = Annotated[str | None, typer.Option("--target", help=_TARGET)]
EngineOfTask = Annotated[
    str,
    typer.Option(
        "--engine",
        "-e",
        help=f"{_ENGINE}; `compress` also takes auto: the fastest of {{automatic}} that is installed.",
        rich_help_panel=OF_TASKS,
    ),
]
TargetOfTask = Annotated[str | None, typer.Option("--target", help=_TARGET, rich_help_panel=OF_TASKS)]
ChosenRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe", "-r", help="{presets}, or a YAML file; default: int8-static, for a language model int4-gptq."
    ),
]
Layout = Annotated[
    str,
    typer.Option(help="File layout of a compressed language model: {layouts}.", rich_help_panel=OF_FOLDERS),
]
PRECISION = "Precision of float operators: f32 or bf16."
EVALUATE = "Measure the metric of original and compressed model."
Precision = Annotated[str, typer.Option(help=PRECISION, rich_help_panel=OF_TASKS)]
Evaluate = Annotated[
    bool, typer.Option("--evaluate/--no-evaluate", help=EVALUATE, rich_help_panel=OF_TASKS)
]
CalibrationData = Annotated[
    Path | None,
    typer.Option(
        help="Calibration data of a language model: a text file, or a .jsonl file of records with `text` or "
        "`messages`.",
        dir_okay=False,
        rich_help_panel=OF_FOLDERS,
    ),
]
HeldOutData = Annotated[
    Path | None,
    typer.Option(
        help="Held-out data of a language model, as --data, to report perplexity on.",
        dir_okay=False,
        rich_help_panel=OF_FOLDERS,
    ),
]
Windows = Annotated[int, typer.Option(help="Number of windows of --data.", min=1, rich_help_panel=OF_FOLDERS)]
Length = Annotated[
    int | None,
    typer.Option(
        help="Tokens per window; default: 512, or fewer if the model takes fewer.", min=2, rich_help_panel=OF_FOLDERS
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where weights are solved, and the blocks of a language model computed: cpu, or an accelerator of PyTorch "
        "such as cuda, cuda:1 or mps; default: cpu."
    ),
]
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
