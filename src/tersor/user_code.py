"""Calls to the user's code: whatever it raises becomes an error that shows the user's own line."""

import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from tersor.errors import TersorError

_PACKAGE = str(Path(__file__).parent)
_OTHERS = ("site-packages", "dist-packages", "<frozen", "/lib/python3")


@contextmanager
def users(what: str, kind: type[TersorError], remedy: str, ours_pass: bool = True) -> Iterator[None]:
    """Wrap a call to the user's code, named ``what``.

    Raises:
        TersorError: of the given kind, for whatever the code raises, including ``sys.exit``; with ``ours_pass``, a
            Tersor error passes unchanged.

    >>> from tersor.errors import TaskError
    >>> with users("task()", TaskError, "correct it"):
    ...     raise SystemExit(0)
    Traceback (most recent call last):
    tersor.errors.TaskError: task() called sys.exit(0)...; correct it
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if ours_pass and isinstance(error, TersorError):
            raise
        verb = "called" if isinstance(error, SystemExit) else "raised"
        raise kind(f"{what} {verb} {told(error)}; {remedy}") from error


def told(error: BaseException) -> str:
    """An error in one line: its type, its message, and the user's line that raised it."""
    message = " ".join(str(error).split())[:400].rstrip(".")
    if isinstance(error, SystemExit):
        said = f"sys.exit({error.code!r:.80})"
    elif isinstance(error, SyntaxError):
        said = f"{type(error).__name__}: {error.msg}"
    else:
        said = f"{type(error).__name__}{': ' if message else ''}{message}"
    return said + (f" ({line})" if (line := _line(error)) else "")


def _line(error: BaseException) -> str:
    """The file, number and text of the user's line."""
    if isinstance(error, SyntaxError) and error.filename:
        file, number, text = error.filename, error.lineno or 0, error.text or ""
    elif (found := _place(error.__traceback__)) is not None:
        file, number = found
        text = linecache.getline(file, number)
    else:
        return ""
    text = " ".join(text.replace("\0", "").split())[:160]
    return f"{Path(file).name}, line {number}" + (f": {text}" if text else "")


def _place(trace: TracebackType | None) -> tuple[str, int] | None:
    """The innermost line that is neither Tersor's nor an installed library's."""
    found = None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith(_PACKAGE) and not any(other in file for other in _OTHERS):
            found = file, trace.tb_lineno
        trace = trace.tb_next
    return found
