"""Write the report to a folder: `report.json` for programs, `report.html` for people."""

from pathlib import Path

from tersor.measure.headline import with_headline
from tersor.measure.schema import Report
from tersor.report.html import html


def write_report(report: Report, folder: Path | str) -> tuple[Path, Path]:
    """Write both files, with the headline filled in, and return their paths."""
    report, folder = with_headline(report), Path(folder)
    data, page = folder / "report.json", folder / "report.html"
    data.write_text(report.to_json(), encoding="utf-8")
    page.write_text(html(report), encoding="utf-8")
    return data, page
