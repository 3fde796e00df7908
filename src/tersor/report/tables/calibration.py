"""Calibration as tables and as a histogram of one site."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.text import Text

from tersor.errors import CalibrationError
from tersor.measure.formatting import number_text
from tersor.network.calibrate import Calibrated
from tersor.observers import OBSERVERS, Estimate
from tersor.report.tables.grid import Column, Grid
from tersor.words import _, shown

_WIDTH, _ROWS = 48, 24


def ranges(calibrated: Calibrated) -> RenderableType:
    """A table of the range that the recipe's estimator chose for each site."""
    if not calibrated.estimates:
        return _nothing(calibrated)
    return _rows(
        (site, next((e for e in estimates if e.observer == calibrated.chosen[site]), estimates[0]), "")
        for site, estimates in calibrated.estimates.items()
    )


def comparison(calibrated: Calibrated) -> RenderableType:
    """Every estimator of every site: its range, and the SQNR in dB with that range.

    The estimators stand side by side where the terminal is wide enough, and below each other elsewhere.
    """
    if not calibrated.estimates:
        return _nothing(calibrated)
    beside = Grid(Column(_("site")), *(Column(name) for name in OBSERVERS))
    for site, estimates in calibrated.estimates.items():
        best, cells = _best(estimates), []
        for estimate in estimates:
            if estimate.low is None:
                cells.append(Text(shown(estimate.note or "") or _("none"), style="dim"))
                continue
            text = f"{_number(estimate.low)} … {_number(estimate.high)}\n{_number(estimate.sqnr_db)} dB"
            cells.append(Text(text, style="bold" if estimate.sqnr_db == best else ""))
        beside.add(site, *cells)
    below = _rows(
        (site, e, "bold" if e.sqnr_db == _best(estimates) else "")
        for site, estimates in calibrated.estimates.items()
        for e in estimates
    )
    words = _("dB: power of the values over power of the rounding error; higher is better, best in bold")
    return Group(Either(beside, below), Text(words))


@dataclass(frozen=True)
class Either:
    """The first if it fits into the width, else the second."""

    first: RenderableType
    second: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        """The one that fits."""
        width = Measurement.get(console, options.update(max_width=10_000), self.first).maximum
        yield self.first if width <= options.max_width else self.second


def calibration_data(calibrated: Calibrated) -> dict[str, Any]:
    """What was found as plain values."""
    quality = calibrated.verdict
    sites = [
        {
            "name": site,
            "chosen": calibrated.chosen[site],
            "estimators": {
                e.observer: {"low": e.low, "high": e.high, "sqnr_db": e.sqnr_db, "clipped": e.clipped, "note": e.note}
                for e in estimates
            },
        }
        for site, estimates in calibrated.estimates.items()
    ]
    return {"samples": quality.samples, "sites": sites, "warnings": list(quality.warnings)}


def drawing(calibrated: Calibrated, pattern: str) -> RenderableType:
    """The histogram of each matching site, with the estimators' thresholds.

    Raises:
        CalibrationError: no site matches; the message names the nearest.
    """
    sites = [s for s in calibrated.estimates if fnmatchcase(s, pattern)]
    if not calibrated.estimates:
        raise CalibrationError(f"no site matches {pattern!r}: {'; '.join(calibrated.verdict.warnings)}")
    if not sites:
        nearest = difflib.get_close_matches(pattern, calibrated.estimates, 3, 0.3)
        raise CalibrationError(
            f"no site matches {pattern!r}; nearest: {', '.join(nearest) or ', '.join(list(calibrated.estimates)[:5])}"
        )
    return Group(*(_histogram(calibrated, site) for site in sites))


def _histogram(calibrated: Calibrated, site: str) -> RenderableType:
    node = next(s.node for s in calibrated.plan.activations() if s.name == site)
    data = calibrated.calibration.statistics[node].to_dict(_ROWS)["histogram"]
    most = max(data["counts"], default=1) or 1
    lines = Text(f"\n{site}\n", style="bold")
    for k, count in enumerate(data["counts"]):
        low = data["low"] + k * data["width"]
        marks = [
            f"{e.observer} {end}"
            for e in calibrated.estimates[site]
            for end, value in (("low", e.low), ("high", e.high))
            if value is not None and (end == "high" or value < 0) and low < value <= low + data["width"]
        ]
        # The square root keeps the tails visible next to the peak.
        bar = "█" * round(_WIDTH * (count / most) ** 0.5) or ("▏" if count else "")
        lines.append(f"{number_text(low):>10} ", style="dim")
        lines.append(f"{bar:<{_WIDTH}} ", style="cyan")
        lines.append(", ".join(marks) + "\n", style="bold")
    return lines


def verdict(calibrated: Calibrated) -> RenderableType:
    """Text on whether the calibration data is adequate."""
    quality = calibrated.verdict
    if not calibrated.estimates:
        return Text("\n" + _("calibration data: not read"), style="dim")
    head = "\n" + _("calibration data: {count} samples", count=quality.samples)
    if not quality.warnings:
        return Text(_(", ").join((head, _("adequate"))), style="green")
    warnings = (Text(_("warning: ") + shown(w), style="yellow") for w in quality.warnings)
    return Group(Text(head), *warnings)


def _nothing(calibrated: Calibrated) -> RenderableType:
    return Text(_("; ").join(map(shown, calibrated.verdict.warnings)), style="yellow")


def _rows(rows: Iterable[tuple[str, Estimate, str]]) -> Grid:
    """A row for each estimate, in its style."""
    grid = Grid(
        Column(_("site")),
        Column(_("estimator")),
        Column(_("low"), right=True),
        Column(_("high"), right=True),
        Column("SQNR dB", right=True),
        Column(_("clipped"), right=True, drop=1),
    )
    for site, row, style in rows:
        figures = (_number(row.low), _number(row.high), _number(row.sqnr_db), _share(row.clipped))
        grid.add(site, row.observer, *figures, style=style)
    return grid


def _best(estimates: list[Estimate]) -> float | None:
    return max((e.sqnr_db for e in estimates if e.sqnr_db is not None), default=None)


def _number(value: float | None) -> str:
    return "" if value is None else number_text(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
