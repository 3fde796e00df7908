"""Validation of user arguments: paths, integers and devices."""

import operator
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.errors import EngineError, TersorError

if TYPE_CHECKING:  # the command line checks paths without PyTorch, whose import takes seconds
    import torch


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


def usable_device(name: "str | torch.device | None") -> "torch.device":
    """The device of that name, with its index; None is the CPU.

    Args:
        name: ``cpu``, or an accelerator that this PyTorch has: ``cuda`` (NVIDIA and AMD), ``cuda:1``, ``mps`` (Apple),
            ``xpu`` (Intel) …; without an index it is the current one.

    Raises:
        EngineError: there is no such device; the message lists those that there are.

    >>> usable_device(None), usable_device("cpu")
    (device(type='cpu'), device(type='cpu'))
    >>> usable_device("cuda:99")
    Traceback (most recent call last):
    tersor.errors.EngineError: there is no device cuda:99 here: give one of cpu...
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind, count = ("", 0) if accelerator is None else (accelerator.type, torch.accelerator.device_count())
    try:
        found = torch.device("cpu" if name is None else name)
    except (RuntimeError, TypeError, ValueError):
        found = torch.device("meta")  # on which nothing is computed
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type == kind and (found.index is None or found.index < count):
        return torch.device(kind, torch.accelerator.current_device_index() if found.index is None else found.index)
    there = ", ".join(["cpu", *(f"{kind}:{k}" for k in range(count))])
    why = "" if count else "; this PyTorch has no accelerator, or finds none (see python -m torch.utils.collect_env)"
    raise EngineError(f"there is no device {name!s:.80} here: give one of {there}{why}")


def computes_float64(device: "torch.device") -> bool:
    """Whether a device has float64, in which scales are computed; Apple's ``mps`` does not.

    >>> computes_float64(usable_device("cpu"))
    True
    """
    import torch

    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):
        return False
    return True
