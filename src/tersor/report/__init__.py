"""The Report for people: in a terminal and as one page."""

from tersor.report.html import html
from tersor.report.text import print_report, render, text

__all__ = ["html", "print_report", "render", "text"]
