"""Load the Task from a file that the user wrote."""

import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tersor.errors import TaskError

if TYPE_CHECKING:
    from tersor.task import Task


def load_task(path: Path) -> "Task":
    """The Task that a file defines; modules beside the file can be imported while it is read.

    Raises:
        TaskError: the file or the function does not exist, raises, or does not return a Task.
    """
    from tersor.task import Task
    from tersor.user_code import users

    file, function = find_task(path)
    with _importable(file.resolve().parent):
        make = getattr(_module(file), function, None)
        if make is None or not callable(make):
            found = "no function" if make is None else f"a {type(make).__name__} and no function"
            raise TaskError(f"{file} has {found} {function}(); write `def {function}() -> tersor.Task:`")
        _check_callable(make, f"{function}() of {file}")
        with users(f"{function}() of {file}", TaskError, "correct it"):
            made = make()
    if not isinstance(made, Task):
        raise TaskError(f"{function}() of {file} returned a {type(made).__name__}, not a tersor.Task")
    return made


def _module(file: Path) -> ModuleType:
    """The module that a file makes; what the file raises shows the user's own line."""
    from tersor.user_code import users

    spec = importlib.util.spec_from_file_location(f"tersor_task_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with users(str(file), TaskError, "correct it; `python FILE` runs it alone"):
        spec.loader.exec_module(module)
    return module


def _check_callable(make: Any, what: str) -> None:
    """It takes no argument, and is not async."""
    if inspect.iscoroutinefunction(make):
        raise TaskError(f"{what} is async: write a plain function")
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise TaskError(f"{what} must take no arguments ({error}): give them defaults") from error
    except ValueError:  # of some functions in C
        return


def find_task(path: Path) -> tuple[Path, str]:
    """The path of the file and the name of its function.

    Raises:
        TaskError: the file does not exist or is not Python.
    """
    name, _, function = str(path).partition(".py:")
    file = Path(f"{name}.py") if function else path
    wanted = "give a Python file with a function `task() -> tersor.Task`"
    if not file.is_file():
        raise TaskError(f"there is no task file {file}; {wanted}, or the folder of a language model")
    if file.suffix != ".py":
        raise TaskError(f"{file} is not a Python file; {wanted}, or the folder of a language model, not a file in it")
    return file, function or "task"


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
