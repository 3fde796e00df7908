"""Render the Report for people, in a terminal and as one HTML page."""

from tersor.report.html import html
from tersor.report.text import print_report, render, text
from tersor.report.write import write_report

__all__ = ["html", "print_report", "render", "text", "write_report"]
