"""What a command that fails prints: one line and an exit code, and the traceback with ``--debug``."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from rich.text import Text

from tersor.cli.common import DEBUG, errors
from tersor.errors import TersorError
from tersor.packages import of_every_installation
from tersor.words import _

FAILED, INTERRUPTED = 1, 130


def exit_code(run: Callable[[], Any], debug: bool) -> int:
    """Run the program and return its exit code; whatever it raises is printed in one line, and nothing passes."""
    try:
        run()
    except SystemExit as error:  # how typer ends: 0, or 2 for usage
        return error.code if isinstance(error.code, int) else FAILED * (error.code is not None)
    except KeyboardInterrupt:
        errors.print(_("interrupted"))
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
    line = f"{type(error).__name__}: {_said(error, debug)}"
    errors.print(Text.assemble((_("error: "), "bold red"), line), soft_wrap=True)


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
