"""The notebooks of the documentation run, their stored outputs are stable, and the Chinese ones are their twins."""

import re
from pathlib import Path

import nbformat
import pytest

from scripts.run_notebooks import DOCS, executed, normalized

EN = sorted((DOCS / "en/notebooks").glob("*.ipynb"))
MOST = 200_000  # bytes of a file


def cells(path: Path, kind: str) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+", "\n\n".join(cells(path, "markdown")), re.MULTILINE)


@pytest.mark.parametrize("path", EN, ids=lambda path: path.stem)
def test_a_notebook_has_a_chinese_twin_and_a_place_in_the_site(path):
    twin = DOCS / "zh/notebooks" / path.name
    assert cells(twin, "code") == cells(path, "code")
    assert headings(twin) == headings(path)
    assert all(re.search("[\u4e00-\u9fff]", text) for text in cells(twin, "markdown"))
    assert f"notebooks/{path.stem}.md" in (DOCS.parent / "mkdocs.yml").read_text(encoding="utf8")
    assert not [text for text in cells(path, "markdown") if re.search("[\u4e00-\u9fff]", text)]


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.ipynb")), ids=lambda path: f"{path.parts[-3]} {path.stem}")
def test_stored_outputs_are_there_and_without_what_changes_by_the_run(path):
    """`make notebooks` writes them anew."""
    notebook = nbformat.read(path, as_version=4)
    assert path.read_text(encoding="utf8") == nbformat.writes(normalized(notebook)) + "\n"
    assert sum(bool(cell.outputs) for cell in notebook.cells if cell.cell_type == "code") > 4
    assert any("text/html" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    assert path.stat().st_size < MOST


@pytest.mark.slow
@pytest.mark.parametrize("path", EN, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_quiet(path):
    said = [o for cell in executed(path).cells for o in cell.get("outputs", []) if o.output_type == "stream"]
    assert said == []
