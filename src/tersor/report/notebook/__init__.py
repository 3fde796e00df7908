"""How values show themselves: one line for `repr`, a table for terminals, and the same table as HTML for notebooks."""

from tersor.report.notebook.fragment import html_of
from tersor.report.notebook.views import line, renderable

__all__ = ["html", "line", "renderable"]


def html(value: object) -> str:
    """The fragment that a notebook shows for a value of `views.VIEWS`."""
    return html_of(renderable(value))
