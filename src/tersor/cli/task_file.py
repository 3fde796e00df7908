"""Load the Task from a file that the user wrote."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.errors import TaskError

if TYPE_CHECKING:
    from tersor.task import Task


def load_task(path: Path) -> "Task":
    """The Task that a file defines; modules beside the file can be imported while it is read.

    Raises:
        TaskError: the file or the function does not exist, or the function does not return a Task.
    """
    from tersor.task import Task

    file, function = find_task(path)
    with _importable(file.resolve().parent):
        spec = importlib.util.spec_from_file_location(f"tersor_task_{file.stem}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        make = getattr(module, function, None)
        if make is None:
            raise TaskError(f"{file} has no function {function}(); write `def {function}() -> tersor.Task:`")
        made = make()
    if not isinstance(made, Task):
        raise TaskError(f"{function}() of {file} returned a {type(made).__name__}, not a tersor.Task")
    return made


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
