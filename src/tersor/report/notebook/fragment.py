"""What `rich` prints in a terminal, as a fragment of HTML: tables, text, and whatever else as preformatted text.

A fragment stands in a page that we do not know, light or dark: its styles are inline, colours are mixtures with that of
the page's own text, and it has no script and no identifiers. All text is made plain and escaped, as in our own pages.
"""

import io
from collections.abc import Iterable

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

from tersor.inert import plain
from tersor.report.tables.grid import Grid
from tersor.terminal import Inert, Terminal

ROWS = 24  # of a table; a longer one scrolls
_BOX = "max-width:64rem;margin:.25rem 0;overflow-x:auto;font-size:.9em;line-height:1.5;color:inherit"
_LONG = "max-height:34rem;overflow:auto"
_TABLE = "border-collapse:collapse;border:0;margin:.5rem 0;font-size:inherit;font-variant-numeric:tabular-nums"
_CELL = "border:0;padding:.1rem 1.1rem .1rem 0;vertical-align:top;background:none;max-width:32rem"
_HEAD = f"{_CELL};font-weight:600;border-bottom:1px solid rgba(128,128,128,.5)"
_LINE = "margin:.25rem 0;overflow-wrap:anywhere"
_COLOURS = {"green": "#16a34a", "yellow": "#d97706", "red": "#dc2626", "cyan": "#0891b2"}


def html_of(shown: RenderableType) -> str:
    """The fragment.

    >>> print(html_of(Text("1 < 2", style="bold")))
    <div style="..."><p style="..."><span style="font-weight:600">1 &lt; 2</span></p></div>
    """
    return Markup('<div style="{}">{}</div>').format(_BOX, Markup().join(map(_block, _parts(shown))))


def _parts(shown: RenderableType) -> Iterable[RenderableType]:
    """The tables and texts in a group, without empty ones."""
    if isinstance(shown, Inert):
        yield from _parts(shown.shown)
    elif isinstance(shown, Group):
        for part in shown.renderables:
            yield from _parts(part)
    elif not isinstance(shown, str | Text) or str(shown).strip():
        yield shown


def _block(shown: RenderableType) -> Markup:
    if isinstance(shown, Grid):
        shown = shown.table()
    if isinstance(shown, Table):
        return _table(shown)
    if isinstance(shown, str | Text):
        return Markup('<p style="{}">{}</p>').format(_LINE, _inline(shown))
    return Markup('<pre style="font-size:inherit;background:none">{}</pre>').format(_preformatted(shown))


def _table(table: Table) -> Markup:
    aligned = [_column_css(column) for column in table.columns]
    head = Markup("")
    if table.show_header:
        cells = (
            Markup('<th scope="col" style="{};{}">{}</th>').format(_HEAD, align, _inline(column.header))
            for align, column in zip(aligned, table.columns, strict=True)
        )
        head = Markup("<thead><tr>{}</tr></thead>").format(Markup().join(cells))
    rows = []
    for row, cells in zip(table.rows, zip(*(column.cells for column in table.columns), strict=True), strict=True):
        found = (
            Markup('<td style="{};{}">{}</td>').format(_CELL, align, _inline(cell))
            for align, cell in zip(aligned, cells, strict=True)
        )
        style = ";".join(["background:none", *_css(_style(row.style or ""))])
        rows.append(Markup('<tr style="{}">{}</tr>').format(style, Markup().join(found)))
    # The class keeps those styles away that a page has for tables without one.
    whole = Markup('<table class="tersor" style="{}">{}<tbody>{}</tbody></table>')
    whole = whole.format(_TABLE, head, Markup().join(rows))
    return Markup('<div style="{}" tabindex="0">{}</div>').format(_LONG, whole) if len(rows) > ROWS else whole


def _column_css(column: Column) -> str:
    align = column.justify if column.justify in ("right", "center") else "left"
    return f"text-align:{align}" + (";white-space:nowrap" if column.no_wrap or align == "right" else "")


def _inline(shown: RenderableType) -> Markup:
    """Text with its styles; line breaks stay."""
    if not isinstance(shown, str | Text):
        return Markup('<span style="white-space:pre">{}</span>').format(_preformatted(shown))
    text = shown if isinstance(shown, Text) else Text(shown)
    first, last = len(text) - len(text.plain.lstrip("\n")), len(text.plain.rstrip("\n"))
    base, found = _style(text.style), Markup("")
    for words, style, _ in text[first:last].render(Terminal(file=io.StringIO()), end="") if last else ():
        lines = Markup("<br>").join(map(plain, words.split("\n")))
        css = ";".join(_css(style or base))
        found += Markup('<span style="{}">{}</span>').format(css, lines) if css else lines
    return found


def _style(style: str | Style) -> Style:
    return Style.parse(style) if isinstance(style, str) else style


def _css(style: Style) -> list[str]:
    """The declarations of a style; other colours than ours are left out."""
    colour = _COLOURS.get(style.color.name) if style.color is not None else None
    return [
        *(["font-weight:600"] if style.bold else []),
        *(["opacity:.7"] if style.dim else []),
        *([f"color:color-mix(in srgb,currentColor 45%,{colour})"] if colour else []),
    ]


def _preformatted(shown: RenderableType) -> Markup:
    console = Terminal(file=io.StringIO(), width=120, color_system=None, legacy_windows=False, force_jupyter=False)
    console.print(shown)
    lines = console.file.getvalue().rstrip().split("\n")  # type: ignore[attr-defined]
    return Markup("\n").join(map(plain, map(str.rstrip, lines)))
