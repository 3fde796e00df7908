"""Tables that fit a terminal: names stay whole, sentences wrap, and columns are left out in a given order."""

from collections.abc import Iterable
from dataclasses import dataclass

import rich.console
from rich import box
from rich.console import ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tersor.inert import plain
from tersor.words import _

# Characters that a column of sentences needs to be readable.
_LEAST = 24


@dataclass(frozen=True)
class Column:
    """A column of a `Grid`.

    Args:
        title: its heading.
        right: aligned to the right.
        drop: where there is too little room, columns with a larger number are left out first; those with 0 never.
        sentences: its cells wrap at words; the others never do.
    """

    title: str
    right: bool = False
    drop: int = 0
    sentences: bool = False


class Grid:
    """A table whose first column, of names, is never broken; a note below names the columns that were left out.

    A name that is longer than a line runs on: crop nothing when printing it.
    """

    def __init__(self, *columns: Column, ruled: bool = False) -> None:
        self.columns = columns
        self.ruled = ruled
        self.rows: list[tuple[tuple[Text, ...], str]] = []

    def add(self, *cells: str | Text, style: str = "") -> None:
        """Add a row; text is shown as it is, never as markup."""
        made = tuple(cell if isinstance(cell, Text) else Text(plain(cell)) for cell in cells)
        self.rows.append((made, style))

    def table(self) -> Table:
        """All of it, however wide; sentences may wrap."""
        return self._table(list(range(len(self.columns))), wrapped=10_000)

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        kept = list(range(len(self.columns)))
        table = self._table(kept)
        while (width := _width(table, console, options)) > options.max_width:
            room = options.max_width - width
            wrapping = next((k for k in kept if self.columns[k].sentences), None)
            if wrapping is not None and (least := self._longest(wrapping) + room) >= _LEAST:
                table = self._table(kept, least)
                break
            drop = max(kept, key=lambda k: self.columns[k].drop)
            if not self.columns[drop].drop:
                break
            kept.remove(drop)
            table = self._table(kept)
        width = max(options.max_width, _width(table, console, options))
        yield from console.render(table, options.update(width=width))  # type: ignore[misc]
        if left := [c.title for k, c in enumerate(self.columns) if k not in kept]:
            yield Text(_("left out for lack of width: {columns} (--wide shows all)", columns=_(", ").join(left)), "dim")

    def _table(self, kept: list[int], wrapped: int | None = None) -> Table:
        look = {"box": box.SIMPLE, "show_edge": False, "header_style": "dim"} if self.ruled else {"box": None}
        table = Table(pad_edge=False, **{"header_style": "bold", **look})  # type: ignore[arg-type]
        for k in kept:
            column, justify = self.columns[k], "right" if self.columns[k].right else "left"
            wraps = column.sentences and wrapped is not None
            table.add_column(
                column.title, justify=justify, no_wrap=not wraps, overflow="fold", max_width=wrapped if wraps else None
            )  # type: ignore[arg-type]
        for cells, style in self.rows:
            table.add_row(*(cells[k] for k in kept), style=style)
        return table

    def _longest(self, column: int) -> int:
        return max(len(self.columns[column].title), *(cells[column].cell_len for cells, style in self.rows), 0)


def _width(table: Table, console: rich.console.Console, options: ConsoleOptions) -> int:
    return Measurement.get(console, options.update(width=10_000), table).maximum
