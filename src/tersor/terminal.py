"""Printed text is shown, never interpreted: in Tersor's console, and in any other that prints Tersor's tables."""

import contextlib
import importlib
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from tersor.inert import plain

try:
    from rich import _wrap
except ImportError:  # a private part of rich: without it, lines break at spaces only
    _wrap = None

# A line may end beside a Chinese character, but not before what closes, nor after what opens.
_CHINESE, _OPENS, _CLOSES = "\u2e80-\u9fff\uff00-\uffef", "（「『“‘《([{", "，。：；、！？）」』”’》…—,.:;!?)]}%"
_BETWEEN = re.compile(
    rf"(?<![\s{re.escape(_OPENS)}])(?:(?<=[{_CHINESE}])|(?=[{_CHINESE}]))(?![\s{re.escape(_CLOSES)}])"
)
_rich_words = getattr(_wrap, "words", None)


def words(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and text of what is kept on a line: words as rich has them, and of Chinese, single characters.

    >>> [word for _, _, word in words("Use q4_0, 或（q8_0）。 再试 ")]
    ['Use ', 'q4_0, ', '或', '（q8_0）。 ', '再', '试 ']
    """
    assert _rich_words is not None
    for start, _end, word in _rich_words(text):
        ends = [0, *(found.start() for found in _BETWEEN.finditer(word) if found.start()), len(word)]
        yield from ((start + a, start + b, word[a:b]) for a, b in itertools.pairwise(ends))


def strip_end(line: Text, width: int) -> None:
    """Take spaces from the end of a line that is too wide, where rich counts its characters and not its columns.

    >>> line = Text("中文 ")
    >>> strip_end(line, 4)
    >>> line.plain
    '中文'
    """
    spaces = len(line.plain) - len(line.plain.rstrip())
    if (surplus := min(spaces, line.cell_len - width)) > 0:
        line.right_crop(surplus)


@contextlib.contextmanager
def wrapping() -> Iterator[None]:
    """Inside, rich breaks lines between Chinese characters, which it takes for one long word."""
    ours = [(Text, "rstrip_end", strip_end)] + [(_wrap, "words", words)] * (_rich_words is not None)
    before = [(place, name, getattr(place, name)) for place, name, _ in ours]
    try:
        for place, name, function in ours:
            setattr(place, name, function)
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


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
        with wrapping():
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
        with wrapping():
            return list(_inert(console.render(self.shown, options.update(markup=False, highlight=False))))


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
