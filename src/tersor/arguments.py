"""Validation of user arguments: paths and integers."""

import operator
import os
from pathlib import Path
from typing import Any

from tersor.errors import TersorError


def path_of(what: str, value: Any, error: type[TersorError]) -> Path:
    r"""``value`` as a Path.

    Raises:
        TersorError: of the given type; it is not a path, is empty, or contains a character that no file system accepts.

    >>> from tersor.errors import SavedFolderError
    >>> path_of("folder", "a\0b", SavedFolderError)
    Traceback (most recent call last):
    tersor.errors.SavedFolderError: the folder 'a\x00b' holds a NUL character: give another path
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(text := os.fspath(value), str):
        raise error(f"the {what} is {value!r:.80}, no path: give a string or a pathlib.Path")
    if not text:
        raise error(f"the {what} is an empty string: give a path")
    if "\0" in text:
        raise error(f"the {what} {text!r:.200} holds a NUL character: give another path")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise error(f"the {what} {text!a:.200} holds half of a character: give another path") from None
    return Path(text)


def whole(what: str, value: Any, least: int, most: int | None, remedy: str, error: type[TersorError]) -> int:
    """``value`` as an int from ``least`` to ``most``; True and 2.0 are rejected.

    Raises:
        TersorError: of the given type, naming the value and the remedy.

    >>> from tersor.errors import TaskError
    >>> whole("samples", 2.5, 1, None, "leave it out", TaskError)
    Traceback (most recent call last):
    tersor.errors.TaskError: samples is 2.5: it must be at least 1, a whole number; leave it out
    """
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        raise error(f"{what} is {value!r:.80}: it must be {bounds}, a whole number; {remedy}")
    return number
