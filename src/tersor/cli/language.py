"""The help of the command line in the language of the reader, with the names of tables in their places."""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

from tersor.cli.common import Chosen, using
from tersor.cli.options import VALUES
from tersor.terminal import wrapping
from tersor.words import _, said

# What typer says itself, by the name of its constant.
TYPER = {
    "ARGUMENTS_PANEL_TITLE": said("Arguments"),
    "OPTIONS_PANEL_TITLE": said("Options"),
    "COMMANDS_PANEL_TITLE": said("Commands"),
    "ERRORS_PANEL_TITLE": said("Error"),
    "DEFAULT_STRING": said("[default: {}]"),
    "REQUIRED_LONG_STRING": said("[required]"),
    "RICH_HELP": said("Try [blue]'{command_path} {help_option}'[/] for help."),
}
HELP_OPTION = said("Show this message and exit.")
ENVIRONMENT = {
    "TERSOR_LANG": said("language of what is printed: en or zh"),
    "LC_ALL, LC_MESSAGES, LANG": said("language where TERSOR_LANG is not set; zh_CN.UTF-8 is Chinese"),
    "OMP_NUM_THREADS": said("threads of PyTorch, which calibration and solvers run on"),
    "TMPDIR": said("folder for temporary files"),
    "COLUMNS": said("width of tables in characters, where the output is not a terminal"),
    "NO_COLOR": said("any value: no colours"),
}


class Command(TyperCommand):
    """A command whose usage is told in the language of the reader."""

    def get_usage(self, ctx: Any) -> str:
        """The line of usage."""
        return _usage(super().get_usage(ctx))

    def get_help_option(self, ctx: Any) -> Any:
        """The option ``--help``."""
        return _helping(super().get_help_option(ctx))


class Group(TyperGroup):
    """A group of commands; as the program, it applies the common options before anything is parsed."""

    def get_usage(self, ctx: Any) -> str:
        """The line of usage."""
        return _usage(super().get_usage(ctx))

    def get_help_option(self, ctx: Any) -> Any:
        """The option ``--help``."""
        return _helping(super().get_help_option(ctx))

    def main(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """Run the program."""
        words = list(sys.argv[1:] if args is None else args)
        with using(Chosen.of(words)), _typer_speaks(), wrapping():
            translate(self)
            self.epilog = environment()
            return super().main(words, *more, **options)


def translate(command: Any) -> None:
    """Put a tree of commands, which typer makes anew for every run, into the language of the reader."""
    command.help, command.epilog = _filled(command.help), _filled(command.epilog)
    for option in command.params:
        option.help = _filled(getattr(option, "help", None))
        option.rich_help_panel = _filled(getattr(option, "rich_help_panel", None))
    for inner in getattr(command, "commands", {}).values():
        translate(inner)


def environment() -> str:
    """The paragraphs on environment variables for the end of the program's help."""
    told = (_("{name}: {text}", name=name, text=_(text)) for name, text in ENVIRONMENT.items())
    return "\n\n".join([_("Environment variables:"), *told])


def _filled(text: str | None) -> str | None:
    return text and _(inspect.cleandoc(text), **VALUES)


def _helping(option: Any) -> Any:
    if option is not None:
        option.help = _(HELP_OPTION)
    return option


def _usage(line: str) -> str:
    return line.replace("Usage: ", _("Usage: "), 1)


@contextlib.contextmanager
def _typer_speaks() -> Iterator[None]:
    """Inside, typer's own words are in the language of the reader, and its tables cut no word short."""
    from rich.table import Table
    from typer import rich_utils

    class Folding(Table):
        def add_row(self, *cells: Any, **style: Any) -> None:
            super().add_row(*cells, **style)
            for column in self.columns:
                column.overflow = "fold"

    words = {name: _(text) for name, text in TYPER.items() if hasattr(rich_utils, name)}
    before = {name: getattr(rich_utils, name) for name in (*words, "Table")}
    for name, value in {**words, "Table": Folding}.items():
        setattr(rich_utils, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(rich_utils, name, value)
