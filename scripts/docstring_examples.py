"""For the documentation site: show the doctests in docstrings as code.

Google's style knows examples only under a heading of their own; ours stand where they belong, and without a
fence Markdown would take `>>>` for a quotation of a quotation.
"""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*\n|\Z).*)*", re.MULTILINE)


class DocstringExamples(griffe.Extension):
    """Fences every paragraph that begins with a prompt."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
