"""A progress bar on standard error for whatever takes long; silent where nobody looks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tersor.terminal import Terminal


class Stages:
    """Shows one bar a stage and keeps how many seconds each stage took."""

    def __init__(self, show: bool = True) -> None:
        console = Terminal(stderr=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self._bars = Progress(
            *columns, console=console, transient=True, disable=not (show and console.is_terminal)
        )
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, text: str, total: int | None = None) -> Iterator["Stage"]:
        """One stage; its seconds are added up under ``name``."""
        start = time.perf_counter()
        task = self._bars.add_task(text, total=total)
        try:
            yield Stage(self._bars, task)
        finally:
            self._bars.remove_task(task)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def __enter__(self) -> "Stages":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()


class Stage:
    """The bar of one stage."""

    def __init__(self, bars: Progress, task: object) -> None:
        self._bars, self._task = bars, task

    def at(self, done: int, total: int | None = None) -> None:
        """So many are done."""
        self._bars.update(self._task, completed=done, **({"total": total} if total else {}))  # type: ignore[arg-type]

    def say(self, text: str) -> None:
        """What is being done now."""
        self._bars.update(self._task, description=text)  # type: ignore[arg-type]

    def advance(self, by: int = 1) -> None:
        """So many more are done."""
        self._bars.advance(self._task, by)  # type: ignore[arg-type]
