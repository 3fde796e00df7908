"""What a command that fails prints: one line and an exit code, and the traceback with ``--debug``."""

import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from rich.text import Text

from tersor.cli.options import errors
from tersor.errors import TaskError, TersorError
from tersor.packages import of_every_installation
from tersor.words import _

DEBUG = "--debug"
FAILED, INTERRUPTED = 1, 130


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, in which code of the user's cannot end the program by ``sys.exit`` as if all were well.

    An interruption is said in a line, with the notes that were added to it.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as error:  # typer ends the program with 130, and says nothing
            errors.print("; ".join([_("interrupted"), *getattr(error, "__notes__", ())]), soft_wrap=True)
            raise
        except SystemExit as error:
            raise TaskError(
                f"code of the task, its model or its data called sys.exit({error.code!r:.80}): take that out"
            ) from error

    return run


def without_debug(words: Sequence[str]) -> tuple[list[str], bool]:
    """The words of a command line without ``--debug``, wherever it stands before a ``--``, and whether it did.

    >>> without_debug(["report", "--debug", "small", "--", "--debug"])
    (['report', 'small', '--', '--debug'], True)
    """
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != DEBUG]
    return [*kept, *words[end:]], len(kept) < end


def exit_code(run: Callable[[], Any], debug: bool) -> int:
    """Run the program and return its exit code; whatever it raises is printed in one line, and nothing passes."""
    try:
        run()
    except SystemExit as error:  # how typer ends: 0, or 2 for usage
        return error.code if isinstance(error.code, int) else FAILED * (error.code is not None)
    except KeyboardInterrupt:
        errors.print("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads what is printed; Python would say so again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except BaseException as error:
        if debug:
            print(_printable("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        _print(error, debug)
        return FAILED
    return 0


def _print(error: BaseException, debug: bool) -> None:
    if isinstance(error, ModuleNotFoundError):
        error = of_every_installation(error) or error
    errors.print(Text("error:", "bold red"), f"{type(error).__name__}: {_said(error, debug)}", soft_wrap=True)


def _said(error: BaseException, debug: bool) -> str:
    """The message in characters that can be printed; what is no error of ours in one line, with what to do."""
    text = _printable(str(error))
    if isinstance(error, TersorError):
        return text
    known = next((remedy for kind, remedy in _REMEDIES.items() if isinstance(error, kind)), _UNKNOWN)
    message = " ".join(text.split())[:400] or "no message"
    return message.rstrip(".") + f"; {known}" + ("" if debug else f", or {DEBUG} shows where")


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


_UNKNOWN = "Tersor did not expect this: please report it, with the command"
_REMEDIES: dict[type[BaseException], str] = {
    MemoryError: "there is not enough memory: take smaller batches or fewer samples",
    RecursionError: "a file or a value is nested too deeply: make it flatter",
    ImportError: "install what is missing",
    OSError: "the system refused a file or a folder: check that it exists and may be used",
}
