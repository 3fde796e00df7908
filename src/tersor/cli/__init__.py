"""The command line. Each command is one call into the package, which it imports when it runs."""

import sys
from typing import Annotated

import typer
from rich.text import Text

from tersor import __version__
from tersor.cli.making import calibrate, compress, demo, inspect, outliers
from tersor.cli.options import console, errors
from tersor.cli.saved import compare, export, generate, report, run
from tersor.cli.signals import ending
from tersor.cli.task_file import load_task
from tersor.errors import TersorError
from tersor.packages import of_every_installation

__all__ = ["app", "load_task", "main"]

app = typer.Typer(
    name="tersor",
    help="Make a trained PyTorch network smaller and faster, run it on a real engine, and measure what it gained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """The entry point; it prints a TersorError as one message, without a traceback."""
    try:
        with ending():
            app()
    except (TersorError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError):
            missing = of_every_installation(error)
            if missing is None:
                raise
            error = missing
        errors.print(Text("error:", "bold red"), f"{type(error).__name__}: {error}", soft_wrap=True)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.print(f"tersor {__version__}")
        raise typer.Exit


def engines() -> None:
    """List engines, installed versions, and what this CPU's instructions mean for int8."""
    from tersor.report.engines import engines_table

    console.print(engines_table())


# In the order of `tersor --help`.
for _command in (inspect, compress, generate, export, report, compare, run, calibrate, outliers, engines, demo):
    app.command()(_command)
