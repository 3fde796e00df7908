"""Compare the reports of saved folders side by side; the best of a row is marked if that is beyond the noise."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tersor.errors import TersorError
from tersor.inert import plain
from tersor.measure.language import is_language_report, read_language_report
from tersor.measure.schema import read_report
from tersor.report.figures import Figure, figures, language_figures
from tersor.report.scatter import TradeOff, drawing, plot, trade_offs
from tersor.report.shell import rendered
from tersor.terminal import Shown
from tersor.words import _, said, shown


@dataclass(frozen=True)
class Row:
    """The figures of one name, one per run, without a value if a run's report has none."""

    name: str
    figures: tuple[Figure, ...]

    @property
    def differs(self) -> bool:
        """Whether two runs have different values of a figure that must match."""
        return len({f.text for f in self.figures if f.must_match and f.value is not None}) > 1

    def best(self) -> frozenset[int]:
        """The indices of the best figures, with ties as displayed.

        It is empty if the best does not beat all others beyond the noise, or is worse than the original model's.

        >>> sorted(Row("speedup", tuple(Figure("speedup", v, "x", True) for v in (1.5, 2.501, None, 2.502))).best())
        [1, 3]
        """
        numbers = [f for f in self.figures if f.higher_is_better is not None and isinstance(f.value, int | float)]
        if len({f.text for f in numbers}) < 2:
            return frozenset()
        choose = max if numbers[0].higher_is_better else min
        best = choose(numbers, key=lambda f: f.value)  # type: ignore[arg-type, return-value]
        first = [f for f in numbers if f.text == best.text]
        others = [f for f in numbers if f.text != best.text]
        if not all(f.beats(other) for f in first for other in others):
            return frozenset()
        return frozenset(k for k, f in enumerate(self.figures) if f.text == best.text and f.good)


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Rows over runs, and notes on what limits the comparison."""

    runs: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    folders: tuple[Path, ...] = ()

    def trade_offs(self) -> list[TradeOff]:
        """Size and latency against the metric; none between runs that cannot be compared."""
        if any(row.differs for row in self.rows):
            return []
        roles = {figure.role: row.figures for row in self.rows for figure in row.figures if figure.role}
        return trade_offs(self.runs, roles)


def side_by_side(runs: Mapping[str, Sequence[Figure]], folders: Sequence[Path] = ()) -> Comparison:
    """Arrange the figures of several runs, by run name, in rows; rows without any value are omitted.

    >>> a, b = (Figure("task", value, must_match=True) for value in "xy")
    >>> comparison = side_by_side({"a": [a], "b": [b]})
    >>> comparison.notes
    ('the runs differ in task (a: x; b: y): their figures are not comparable',)
    """
    by_run = [{figure.name: figure for figure in run} for run in runs.values()]
    rows = []
    for name in _merge_names(runs.values()):
        template = next(run[name] for run in by_run if name in run)
        absent = Figure(name, None, template.unit, template.higher_is_better, template.must_match)
        rows.append(Row(name, tuple(run.get(name, absent) for run in by_run)))
    notes = [
        _note(tuple(runs), row)
        for row in rows
        if any(f.must_match for f in row.figures) and len({f.text for f in row.figures}) > 1
    ]
    known = [row for row in rows if any(f.value is not None for f in row.figures)]
    if any(row.differs for row in known):  # the best of what cannot be compared is no best
        known = [replace(row, figures=tuple(replace(f, good=False) for f in row.figures)) for row in known]
    return Comparison(tuple(runs), tuple(known), tuple(notes), tuple(folders))


def _note(runs: Sequence[str], row: Row) -> str:
    """A note that lists the runs' differing values of a row, with equal ones grouped."""
    by_text: dict[str, list[str]] = {}
    for run, figure in zip(runs, row.figures, strict=True):
        by_text.setdefault(figure.text, []).append(run)
    absent = ", ".join(run for run, figure in zip(runs, row.figures, strict=True) if figure.value is None)
    if absent and len(by_text) == 2:
        return said("{name}: unknown for {runs}, whose report has no such figure", name=row.name, runs=absent)
    values = "; ".join(f"{', '.join(names)}: {text}" for text, names in by_text.items())
    return said(
        "the runs differ in {name} ({values}): their figures are not comparable", name=row.name, values=values
    )


def _merge_names(runs: Iterable[Sequence[Figure]]) -> list[str]:
    """All names in order; a name that only a later run has follows its predecessor in that run."""
    names: list[str] = []
    for run in runs:
        position = 0
        for figure in run:
            if figure.name not in names:
                names.insert(position, figure.name)
            position = names.index(figure.name) + 1
    return names


def compared(folders: Sequence[Path]) -> Comparison:
    """Compare the reports of saved folders, under the folders' names.

    Raises:
        TersorError: fewer than two folders, a duplicate, or one without a readable report.
    """
    if len(folders) < 2 or len({f.resolve() for f in folders}) < len(folders):
        given = ", ".join(map(str, folders)) or "none"
        raise TersorError(f"nothing to compare: {given}; pass two or more different folders that `compress` wrote")
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    return side_by_side({n: _figures_of(f) for n, f in zip(names, folders, strict=True)}, folders)


def _figures_of(folder: Path) -> tuple[Figure, ...]:
    if is_language_report(folder):
        return language_figures(read_language_report(folder))
    return figures(read_report(folder))


def table(comparison: Comparison) -> RenderableType:
    """The comparison as a rich table; the best values are bold and starred."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("", overflow="fold")
    for name in comparison.runs:
        grid.add_column(Text(plain(name)), justify="right", overflow="fold")
    for row in comparison.rows:
        best = row.best()
        # Pad without a star, so that the numbers align.
        cells = [
            Text(f"{f.words} *", "bold green") if k in best else Text(f"{f.words}  " if best else f.words)
            for k, f in enumerate(row.figures)
        ]
        grid.add_row(Text(plain(shown(row.name))), *cells)
    notes = [Text(_("warning: {text}", text=plain(shown(note))), style="yellow") for note in comparison.notes]
    legend = [Text("\n" + _("* best in row, beyond the noise"), style="dim")] if starred(comparison) else []
    fronts = [Text(plain(found.sentence()), style="dim") for found in comparison.trade_offs()]
    return Group(grid, *legend, *fronts, *notes)


def plots(comparison: Comparison) -> RenderableType:
    """The trade-offs as plots in letters, with the runs' numbers."""
    found = comparison.trade_offs()
    if not found:
        return Group()
    names = ", ".join(f"{k} {plain(name)}" for k, name in enumerate(comparison.runs, 1))
    legend = _("{names}; those of the Pareto front in brackets", names=names)
    return Group(*(Text("\n" + plot(one)) for one in found), Text(legend, style="dim"))


def starred(comparison: Comparison) -> bool:
    """Whether any value is marked as the best of its row."""
    return any(row.best() for row in comparison.rows)


def page(comparison: Comparison, beside: Path | None = None) -> str:
    """The comparison as one self-contained HTML page.

    Args:
        beside: the folder in which the page will stand, from which it links to each report that has a page.
    """
    links = [_link(folder, beside) for folder in comparison.folders] or [""] * len(comparison.runs)
    runs = list(zip(comparison.runs, links, strict=True))
    rows = [(row.name, row.best(), row.figures) for row in comparison.rows]
    scatters = [drawing(found, links) for found in comparison.trade_offs()]
    return rendered(
        "compare.html.j2", runs=runs, rows=rows, notes=comparison.notes, starred=starred(comparison), scatters=scatters
    )


def _link(folder: Path, beside: Path | None) -> str:
    """The relative address of a folder's report.html; empty if there is none, or no way to it (another drive)."""
    file = folder.resolve() / "report.html"
    if beside is None or not file.is_file():
        return ""
    try:
        way = Path(os.path.relpath(file, beside.resolve())).as_posix()
    except ValueError:
        return ""
    # A dot in front: no name of a folder is read as a scheme.
    return quote(way if way.startswith("../") else f"./{way}", errors="surrogateescape")
