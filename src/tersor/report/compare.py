"""Compare the reports of saved folders side by side, with the best value of every row marked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tersor.errors import TersorError
from tersor.measure.formatting import is_fraction, metric_text, plain, ratio_text, size_text, time_text
from tersor.measure.headline import fallbacks
from tersor.measure.language import LanguageReport, is_language_report, read_language_report
from tersor.measure.schema import Report, read_report
from tersor.report.html import rendered

Value = float | str | None
_UNITS = {"bytes": size_text, "ms": time_text, "x": ratio_text, "%": lambda value: metric_text(value, True)}


@dataclass(frozen=True)
class Figure:
    """One figure of a report, of any kind of report.

    Args:
        name: the figure's name; figures of the same name share a row.
        value: a number, text, or None if unknown.
        unit: ``bytes``, ``ms``, ``x`` (a ratio), ``%`` (of a fraction), or a suffix.
        higher_is_better: None if no value is better.
        must_match: whether runs that differ in it are not comparable, which a note then says.
    """

    name: str
    value: Value
    unit: str = ""
    higher_is_better: bool | None = None
    must_match: bool = False

    @property
    def text(self) -> str:
        """The formatted value.

        >>> [Figure("", *args).text for args in ((1_500_000, "bytes"), (0.01234, "nats"), (10000,), (None,))]
        ['1.50 MB', '0.01234 nats', '10000', '–']
        """
        if self.value is None:
            return "–"
        if isinstance(self.value, str):
            return plain(self.value)
        if self.unit in _UNITS:
            return _UNITS[self.unit](self.value)
        number = str(self.value) if isinstance(self.value, int) else f"{self.value:.4g}"
        return f"{number} {plain(self.unit)}".strip()


@dataclass(frozen=True)
class Row:
    """The figures of one name, one per run, without a value if a run's report has none."""

    name: str
    figures: tuple[Figure, ...]

    def best(self) -> frozenset[int]:
        """The indices of the best figures, with ties as displayed; empty if none is better or all are displayed equal.

        >>> sorted(Row("speedup", tuple(Figure("speedup", v, "x", True) for v in (1.5, 2.501, None, 2.502))).best())
        [1, 3]
        """
        numbers = [f for f in self.figures if f.higher_is_better is not None and isinstance(f.value, int | float)]
        if len({f.text for f in numbers}) < 2:
            return frozenset()
        choose = max if numbers[0].higher_is_better else min
        best = choose(numbers, key=lambda f: f.value)  # type: ignore[arg-type, return-value]
        return frozenset(k for k, f in enumerate(self.figures) if f.text == best.text)


@dataclass(frozen=True)
class Comparison:
    """Rows over runs, and notes on what limits the comparison."""

    runs: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def side_by_side(runs: Mapping[str, Sequence[Figure]]) -> Comparison:
    """Arrange the figures of several runs, by run name, in rows; rows without any value are omitted.

    >>> a, b = (Figure("task", value, must_match=True) for value in "xy")
    >>> comparison = side_by_side({"a": [a], "b": [b]})
    >>> comparison.notes
    ('the runs differ in task (a: x; b: y): their figures are not comparable',)
    """
    by_run = [{figure.name: figure for figure in figures} for figures in runs.values()]
    rows = []
    for name in _merge_names(runs.values()):
        template = next(figures[name] for figures in by_run if name in figures)
        absent = Figure(name, None, template.unit, template.higher_is_better, template.must_match)
        rows.append(Row(name, tuple(figures.get(name, absent) for figures in by_run)))
    notes = [
        _note(tuple(runs), row)
        for row in rows
        if any(f.must_match for f in row.figures) and len({f.text for f in row.figures}) > 1
    ]
    known = [row for row in rows if any(f.value is not None for f in row.figures)]
    return Comparison(tuple(runs), tuple(known), tuple(notes))


def _note(runs: Sequence[str], row: Row) -> str:
    """A note that lists the runs' differing values of a row, with equal ones grouped."""
    by_text: dict[str, list[str]] = {}
    for run, figure in zip(runs, row.figures, strict=True):
        by_text.setdefault(figure.text, []).append(run)
    absent = ", ".join(run for run, figure in zip(runs, row.figures, strict=True) if figure.value is None)
    if absent and len(by_text) == 2:
        return f"{row.name}: unknown for {absent}, whose report has no such figure"
    values = "; ".join(f"{', '.join(names)}: {text}" for text, names in by_text.items())
    return f"the runs differ in {row.name} ({values}): their figures are not comparable"


def _merge_names(runs: Iterable[Sequence[Figure]]) -> list[str]:
    """All names in order; a name that only a later run has follows its predecessor in that run."""
    names: list[str] = []
    for figures in runs:
        position = 0
        for figure in figures:
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
    return side_by_side({n: _figures_of(f) for n, f in zip(names, folders, strict=True)})


def _figures_of(folder: Path) -> tuple[Figure, ...]:
    if is_language_report(folder):
        return language_figures(read_language_report(folder))
    return figures(read_report(folder))


def language_figures(report: LanguageReport) -> tuple[Figure, ...]:
    """The figures of a LanguageReport."""
    score, before, kl = report.compressed, report.original, report.divergence
    shares = sorted(w.error / w.rtn_error for w in report.weights if w.error is not None and w.rtn_error)
    return (
        Figure("model", report.model, must_match=True),
        Figure("recipe", report.recipe),
        Figure("layout", report.layout),
        Figure("on disk", report.compressed_bytes, "bytes", False),
        Figure("smaller", report.compression, "x", True),
        Figure("bits per quantized weight", report.bits_per_weight, "", False),
        Figure("evaluated on", None if score is None else str(score.protocol), must_match=True),
        Figure("perplexity", None if score is None else score.perplexity, "", False),
        Figure("standard error", None if score is None else score.standard_error, "nats"),
        Figure("perplexity, original", None if before is None else before.perplexity),
        Figure("divergence", None if kl is None else kl.nats, "nats", False),
        Figure("same top prediction", None if kl is None else kl.agreement, "%", True),
        Figure("error relative to RTN, median layer", shares[len(shares) // 2] if shares else None, "", False),
        Figure("weights kept in float", sum(w.format is None for w in report.weights), "", False),
    )


def figures(report: Report) -> tuple[Figure, ...]:
    """The figures of a Report."""
    before, after, ratios, environment = report.original, report.compressed, report.ratios, report.environment
    metric, better = report.metric.name, report.metric.higher_is_better
    unit = "%" if is_fraction(metric, before.metric, after.metric) else ""
    latency = after.latency_ms
    computed = f"{environment.cpu or 'unknown CPU'}, {environment.threads} threads, {environment.precision}"
    return (
        Figure("task", report.task, must_match=True),
        Figure("recipe", report.recipe),
        Figure("engine", report.engine),
        Figure("computed on", computed, must_match=True),
        Figure("on disk", after.bytes, "bytes", False),
        Figure("smaller than FP32", ratios.compression, "x", True),
        Figure("latency", None if latency is None else latency.median, "ms", False),
        Figure("p10", None if latency is None else latency.p10, "ms"),
        Figure("p90", None if latency is None else latency.p90, "ms"),
        Figure("faster than FP32", ratios.speedup, "x", True),
        Figure("memory", after.memory_bytes, "bytes", False),
        Figure("energy per call", after.energy_joules, "J", False),
        Figure("metric", metric, must_match=True),
        Figure("samples evaluated", report.samples.evaluation, must_match=True),
        Figure(metric, after.metric, unit, better),
        Figure(f"{metric}, FP32", before.metric, unit),
        Figure("agrees with FP32", after.agreement, "%", True),
        Figure("float fallbacks", len(fallbacks(report)), "", False),
    )


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
            Text(f"{f.text} *", "bold green") if k in best else Text(f"{f.text}  " if best else f.text)
            for k, f in enumerate(row.figures)
        ]
        grid.add_row(Text(plain(row.name)), *cells)
    notes = [Text("warning: ", style="yellow") + Text(plain(note)) for note in comparison.notes]
    return Group(grid, Text("\n* best in row", style="dim"), *notes)


def page(comparison: Comparison) -> str:
    """The comparison as one self-contained HTML page."""
    rows = [(row.name, row.best(), row.figures) for row in comparison.rows]
    return rendered("compare.html.j2", runs=comparison.runs, rows=rows, notes=comparison.notes)
