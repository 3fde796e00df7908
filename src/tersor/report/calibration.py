"""Calibration as tables and as a histogram of one site."""

import difflib
from fnmatch import fnmatchcase

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tersor.errors import CalibrationError
from tersor.measure.formatting import number_text
from tersor.network.calibrate import Calibrated
from tersor.observers import OBSERVERS

_WIDTH, _ROWS = 48, 24


def ranges(calibrated: Calibrated) -> RenderableType:
    """A table of the range that the recipe's estimator chose for each site."""
    if not calibrated.estimates:
        return _nothing(calibrated)
    table = _table("site", "estimator", "low", "high", "SQNR dB", "clipped")
    for site, estimates in calibrated.estimates.items():
        name = calibrated.chosen[site]
        row = next((e for e in estimates if e.observer == name), estimates[0])
        table.add_row(
            site, row.observer, _number(row.low), _number(row.high), _number(row.sqnr_db), _share(row.clipped)
        )
    return table


def comparison(calibrated: Calibrated) -> RenderableType:
    """A table that compares every estimator: its range, and the SQNR in dB with that range."""
    if not calibrated.estimates:
        return _nothing(calibrated)
    table = _table("site", *OBSERVERS)
    for site, estimates in calibrated.estimates.items():
        best = max((e.sqnr_db for e in estimates if e.sqnr_db is not None), default=None)
        cells = []
        for estimate in estimates:
            if estimate.low is None:
                cells.append(Text(estimate.note or "none", style="dim"))
                continue
            text = f"{_number(estimate.low)} … {_number(estimate.high)}\n{_number(estimate.sqnr_db)} dB"
            cells.append(Text(text, style="bold" if estimate.sqnr_db == best else ""))
        table.add_row(site, *cells)
    return Group(
        table,
        Text("dB: power of the values over power of the rounding error; higher is better, best in bold"),
    )


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
        return Text("\ncalibration data: not read", style="dim")
    if not quality.warnings:
        return Text(f"\ncalibration data: {quality.samples} samples, adequate", style="green")
    head = f"\ncalibration data: {quality.samples} samples"
    return Group(Text(head), *(Text(f"warning: {w}", style="yellow") for w in quality.warnings))


def _nothing(calibrated: Calibrated) -> RenderableType:
    return Text("; ".join(calibrated.verdict.warnings), style="yellow")


def _table(*columns: str) -> Table:
    table = Table(
        box=None, pad_edge=False, header_style="bold", row_styles=["", "dim"] if len(columns) > 6 else None
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _number(value: float | None) -> str:
    return "" if value is None else number_text(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
