"""The command line. Each command is one call into the package, which it imports when it runs."""

import sys
from typing import Annotated

import typer

from tersor import __version__
from tersor.cli.failures import DEBUG, exit_code, guarded, without_debug
from tersor.cli.making import calibrate, compress, demo, inspect, outliers
from tersor.cli.options import console
from tersor.cli.recipes import recipes
from tersor.cli.saved import compare, export, generate, report, run
from tersor.cli.signals import ending
from tersor.cli.task_file import load_task

__all__ = ["app", "load_task", "main"]

app = typer.Typer(
    name="tersor",
    help="Make a trained PyTorch network smaller and faster, run it on a real engine, and measure what it gained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """The entry point: exit code 0, 1 for an error, which is one message, 2 for wrong usage, 130 if interrupted."""
    words, debug = without_debug(sys.argv[1:])
    with ending():
        sys.exit(exit_code(lambda: app(words), debug))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Print the traceback of an error; it may stand anywhere.")] = False,
) -> None:
    if version:
        console.print(f"tersor {__version__}")
        raise typer.Exit


def engines() -> None:
    """List engines, installed versions, and what this CPU's instructions mean for int8."""
    from tersor.report.engines import engines_table

    console.print(engines_table())


# In the order of `tersor --help`.
for _command in (inspect, compress, generate, export, report, compare, run, calibrate, outliers, engines, demo):
    app.command()(guarded(_command))
app.add_typer(recipes)
