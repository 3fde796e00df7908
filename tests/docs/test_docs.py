"""The documentation is true: its Python runs, its recipes load, its commands exist, its links stay inside."""

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), DOCS.parent / "README.md"]


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line, text) of the fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start()) + 1, m[1]) for m in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_python_runs(page):
    """Blocks with a prompt run as one session, page by page; the others at least are Python."""
    session: dict[str, object] = {}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for line, text in blocks(page, "python"):
        if ">>>" not in text:
            compile(text, f"{page.name}:{line}", "exec")
            continue
        test = doctest.DocTestParser().get_doctest(text, session, page.name, str(page), line)
        runner.run(test, clear_globs=False)
        session = test.globs
    assert runner.failures == 0, f"{runner.failures} examples of {page.name} fail, see the output above"


def test_theory_is_run():
    """A fence that is misspelt would silently run nothing."""
    examples = sum(text.count(">>>") for _, text in blocks(DOCS / "theory.md", "python"))
    assert examples > 50
