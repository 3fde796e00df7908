"""Printed text is shown, never interpreted: in Tersor's console, and in any other that prints Tersor's tables."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from tersor.inert import plain


class Terminal(rich.console.Console):
    r"""rich's console, for untrusted text: strings carry no markup, and control characters are visible.

    Styles are given as ``rich.text.Text``. Every segment of text is made plain once more, after the layout, so that
    even an unforeseen name does no harm.

    >>> Terminal(width=40).print("[red]\x1b[2J[/red]")
    [red]\x1b[2J[/red]
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is printed, without control characters in their text."""
        return _inert(super().render(renderable, options))

    def print(self, *objects: Any, crop: bool = False, **options: Any) -> None:
        """Print; a name that is longer than a line runs on instead of being cut."""
        super().print(*objects, crop=crop, **options)

    def on_broken_pipe(self) -> None:
        """Raise what is handled, a BrokenPipeError: rich would end the program."""
        raise


@dataclass(frozen=True)
class Inert:
    """A renderable in which nothing is interpreted, whichever console prints it."""

    shown: RenderableType

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> Iterable[Segment]:
        """The segments, as in Tersor's console."""
        return _inert(console.render(self.shown, options.update(markup=False, highlight=False)))


class Shown:
    """A value with a one-line description, shown as the same table in a terminal and in a notebook.

    The package `report` draws it; ``report.notebook.views`` has an entry for its class. That package is above those of
    these values, so it is imported when a value is shown.
    """

    def __repr__(self) -> str:
        return self._drawn_by().line(self)

    __str__ = __repr__

    def __rich__(self) -> RenderableType:
        return Inert(self._drawn_by().renderable(self))

    def _repr_html_(self) -> str:
        return self._drawn_by().html(self)

    @staticmethod
    def _drawn_by() -> Any:
        return importlib.import_module("tersor.report.notebook")


def _inert(segments: Iterable[Segment]) -> Iterable[Segment]:
    for segment in segments:
        text, style, control = segment
        if control or text.isprintable() or text == "\n":
            yield segment
        else:
            yield Segment("\n".join(map(plain, text.split("\n"))), style)
