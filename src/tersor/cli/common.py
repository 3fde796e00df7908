"""The options that every command takes, and what they change while it runs."""

import contextlib
import functools
import inspect
import itertools
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from enum import Enum
from typing import Annotated, Any

import typer

from tersor.errors import TaskError
from tersor.terminal import Terminal
from tersor.words import LANGUAGES, _, said, speaking

DEBUG, JSON, LANG, QUIET, WIDE = "--debug", "--json", "--lang", "--quiet", "--wide"
# So that no name is broken and nothing is left out, however narrow the terminal is.
_WIDE_COLUMNS = 4000

console = Terminal()
# Remarks about the run, which --quiet silences, and errors, which nothing does.
notes = Terminal(stderr=True)
errors = Terminal(stderr=True)

Language = Enum("Language", {name: name for name in LANGUAGES})


@dataclass(frozen=True)
class Chosen:
    """The common options of a command line."""

    json: bool = False
    quiet: bool = False
    wide: bool = False
    debug: bool = False
    language: str | None = None

    @classmethod
    def of(cls, words: Sequence[str]) -> "Chosen":
        """Those of a command line, wherever they stand before a ``--``; typer checks them afterwards.

        >>> Chosen.of(["report", "small", "--lang", "zh", "--json", "--", "--debug"])
        Chosen(json=True, quiet=False, wide=False, debug=False, language='zh')
        """
        words = list(words[: words.index("--")] if "--" in words else words)
        after = dict(itertools.pairwise(words))
        given = [after.get(LANG), *(word.removeprefix(f"{LANG}=") for word in words if word.startswith(f"{LANG}="))]
        language = next((name for name in given if name in LANGUAGES), None)
        return cls(JSON in words, QUIET in words or "-q" in words, WIDE in words, DEBUG in words, language)


_NOTHING = Chosen()
_chosen: ContextVar[Chosen] = ContextVar("chosen", default=_NOTHING)


def chosen() -> Chosen:
    """The common options of the command that runs."""
    return _chosen.get()


@contextlib.contextmanager
def using(options: Chosen) -> Iterator[None]:
    """Inside, consoles, language, warnings and log are as the options say."""
    with contextlib.ExitStack() as stack:
        before = _chosen.set(options)
        stack.callback(_chosen.reset, before)
        if options.language is not None:
            stack.enter_context(speaking(options.language))
        for terminal, silent in ((console, options.quiet or options.json), (notes, options.quiet)):
            stack.callback(setattr, terminal, "quiet", terminal.quiet)
            terminal.quiet = silent
        if options.wide:
            stack.callback(setattr, console, "_width", console._width)
            console.width = _WIDE_COLUMNS
        if options.quiet:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        if options.debug:
            stack.enter_context(_log_on_stderr())
        yield


@contextlib.contextmanager
def _log_on_stderr() -> Iterator[None]:
    log, handler = logging.getLogger("tersor"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def working(text: str) -> contextlib.AbstractContextManager[Any]:
    """A sign on standard error that something is being done."""
    return notes.status(text)


PANEL = said("General options")
_COMMON: dict[str, tuple[Any, Any]] = {
    "in_language": (
        Annotated[
            Language | None,
            typer.Option(LANG, help="Language of what is printed; default: as TERSOR_LANG or LANG say.",
                         rich_help_panel=PANEL),
        ],
        None,
    ),
    "as_json": (
        Annotated[
            bool,
            typer.Option(JSON, help="Print the result as JSON, and nothing else on standard output.",
                         rich_help_panel=PANEL),
        ],
        False,
    ),
    "quietly": (
        Annotated[bool, typer.Option(QUIET, "-q", help="Print nothing but errors.", rich_help_panel=PANEL)],
        False,
    ),
    "with_debug": (
        Annotated[
            bool,
            typer.Option(DEBUG, help="Print the log, and the traceback of an error.", rich_help_panel=PANEL),
        ],
        False,
    ),
}  # fmt: skip
# Field of `Chosen`: the option as typer passes it.
_FLAGS = {"json": "as_json", "quiet": "quietly", "wide": "widely", "debug": "with_debug"}
_TABULAR: dict[str, tuple[Any, Any]] = {
    "widely": (
        Annotated[
            bool,
            typer.Option(WIDE, help="Print every column in full, whatever the width of the terminal.",
                         rich_help_panel=PANEL),
        ],
        False,
    ),
}  # fmt: skip


def everywhere(command: Callable[..., Any], tabular: bool = False) -> Callable[..., None]:
    """The command with the common options; what it returns is what ``--json`` prints.

    Code of the user's cannot end the program by ``sys.exit`` as if all were well, and what it prints goes to standard
    error beside JSON. An interruption is said in a line, with the notes that were added to it.
    """
    added = {**(_TABULAR if tabular else {}), **_COMMON}
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        # Typer also reads what `Chosen.of` does not, such as -q among other letters.
        given = replace(chosen(), **{name: True for name, option in _FLAGS.items() if kwargs.get(option)})
        kwargs = {name: value for name, value in kwargs.items() if name not in added}
        with using(given) if given != chosen() else contextlib.nullcontext():
            _run(command, args, kwargs)

    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in added.items()
    ]
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
    run.__annotations__ = {name: one.annotation for name, one in own.parameters.items()} | {
        name: kind for name, (kind, default) in added.items()
    }
    return run


def _run(command: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if chosen().json else contextlib.nullcontext():
        try:
            found = command(*args, **kwargs)
        except KeyboardInterrupt as error:  # typer ends the program with 130, and prints nothing
            errors.print(_("; ").join([_("interrupted"), *getattr(error, "__notes__", ())]), soft_wrap=True)
            raise
        except SystemExit as error:
            raise TaskError(
                f"code of the task, its model or its data called sys.exit({error.code!r:.80}): take that out"
            ) from error
    if chosen().json and found is not None:
        out.write(json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n")
