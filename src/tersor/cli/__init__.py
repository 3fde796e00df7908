"""The command line. Each command is one call into the package, which it imports when it runs."""

import json
import sys
from typing import Annotated, Any

import typer

from tersor import __version__
from tersor.cli.common import Chosen, chosen, console, everywhere
from tersor.cli.failures import exit_code
from tersor.cli.language import Command, Group
from tersor.cli.making import calibrate, compress, demo, inspect, outliers
from tersor.cli.recipes import recipes
from tersor.cli.saved import compare, export, generate, report, run
from tersor.cli.searching import optimize, sensitivity
from tersor.cli.signals import ending
from tersor.cli.task_file import load_task
from tersor.cli.training import finetune
from tersor.words import speaking

__all__ = ["app", "load_task", "main"]


app = typer.Typer(
    name="tersor",
    cls=Group,
    help="Turn a trained PyTorch model into a smaller, faster one for a real engine, with measured results.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """The entry point: exit code 0, 1 for an error, which is one message, 2 for wrong usage, 130 if interrupted."""
    options = Chosen.of(sys.argv[1:])
    with ending(), speaking(options.language):
        sys.exit(exit_code(lambda: app(sys.argv[1:]), options.debug))


def _print_version(asked: bool) -> None:
    if not asked:
        return
    console.print(f"tersor {__version__}")
    if chosen().json:
        typer.echo(json.dumps({"version": __version__}))
    raise typer.Exit


def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before a command."""


def engines() -> dict[str, Any]:
    """List engines, installed versions, and what this CPU's instructions mean for int8."""
    from tersor.report.tables.engines import engines_data, engines_table

    console.print(engines_table())
    return engines_data()


app.callback(invoke_without_command=True)(everywhere(_program))
# In the order of `tersor --help`: each command, and whether it prints a table, which may be wide.
_COMMANDS = {
    inspect: True, compress: True, finetune: True, optimize: True, generate: False, export: False, report: True,
    compare: True, run: False, calibrate: True, outliers: True, sensitivity: True, engines: False, demo: True,
}  # fmt: skip
for _command, _tabular in _COMMANDS.items():
    app.command(cls=Command)(everywhere(_command, _tabular))
app.add_typer(recipes)
