"""What is printed is shown, never obeyed: in our console, and in any other that is given one of our tables."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from tersor.inert import plain


class Terminal(rich.console.Console):
    r"""rich's console, for text that others wrote: strings are no markup, and control characters are visible.

    Styles are given as ``rich.text.Text``. Every segment of text is made plain once more, after the layout, so that a
    name that nobody has thought of does no harm either.

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


@dataclass(frozen=True)
class Inert:
    """Something to print, in which nothing is obeyed whichever console prints it."""

    shown: RenderableType

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> Iterable[Segment]:
        """The segments, as those of our console."""
        return _inert(console.render(self.shown, options.update(markup=False, highlight=False)))


class Shown:
    """A value that says in one line what it is, and shows the same table in a terminal and in a notebook.

    The room `report` draws it, ``report.notebook.views`` has an entry for its class. That room stands above those whose
    values these are, and is imported when somebody looks at one.
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
