"""Write the report to a folder: `report.json` for programs, `report.html` for people."""

from pathlib import Path

from tersor.files import write_text
from tersor.measure.headline import with_headline
from tersor.measure.schema import Report
from tersor.report.html import html


def write_report(report: Report, folder: Path | str) -> tuple[Path, Path]:
    """Write both files, with the headline filled in, and return their paths.

    Raises:
        SavedFolderError: the folder cannot be written."""
    report, folder = with_headline(report), Path(folder)
    return write_text(folder / "report.json", report.to_json()), write_text(folder / "report.html", html(report))
