"""A progress bar on standard error or in a notebook for long operations; silent if nobody is watching."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tersor.inert import plain
from tersor.terminal import Terminal

_log = logging.getLogger(__name__)


class NotebookBars(Progress):
    """The bars as one output of a notebook cell, which is updated in place and empty at the end.

    The bars of `rich` need ipywidgets there, and warn at every step if that is not installed.
    """

    _output: Any = None  # of the cell, IPython's handle
    _shown = 0.0  # when

    def start(self) -> None:
        """Begin with an empty output."""
        if not self.disable:
            from IPython.display import display

            self._output = display({"text/plain": ""}, raw=True, display_id=True)

    def stop(self) -> None:
        """Clear the output."""
        if self._output is not None:
            self._output.update({"text/plain": ""}, raw=True)

    def refresh(self) -> None:
        """Show the current bars, at most four times a second."""
        if self._output is None or time.monotonic() < self._shown + 0.25:
            return
        self._shown = time.monotonic()
        bars = Markup().join(map(_bar, self.tasks))
        self._output.update({"text/plain": "", "text/html": bars}, raw=True)

    def add_task(self, *args: Any, **kwargs: Any) -> Any:
        """Add a bar, which is shown at once."""
        self._shown = 0.0
        return super().add_task(*args, **kwargs)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Change a bar."""
        super().update(*args, **kwargs)
        self.refresh()

    def advance(self, *args: Any, **kwargs: Any) -> None:
        """Advance a bar."""
        super().advance(*args, **kwargs)
        self.refresh()


def _bar(task: Task) -> Markup:
    moving = Markup('<progress max="{}" value="{}"></progress> {}/{}')
    done = int(task.completed)
    bar = Markup("<progress></progress>")
    if task.total is not None:
        bar = moving.format(task.total, done, done, int(task.total))
    return Markup("<div>{} {}, {:.0f} s</div>").format(plain(task.description), bar, task.elapsed or 0.0)


class Stages:
    """Shows one bar per stage and records the seconds of each stage."""

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
        kind, seen = (NotebookBars, True) if console.is_jupyter else (Progress, console.is_terminal)
        self._bars = kind(*columns, console=console, transient=True, disable=not (show and seen))
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
            seconds = time.perf_counter() - start
            _log.info("%s: %.2f s", name, seconds)
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

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
        """Set the number done."""
        self._bars.update(self._task, completed=done, **({"total": total} if total else {}))  # type: ignore[arg-type]

    def say(self, text: str) -> None:
        """Show the current activity."""
        self._bars.update(self._task, description=text)  # type: ignore[arg-type]

    def advance(self, by: int = 1) -> None:
        """Add to the number done."""
        self._bars.advance(self._task, by)  # type: ignore[arg-type]
