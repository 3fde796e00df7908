"""The documentation is true: its Python runs, its recipes load, its commands exist, its links stay inside."""

import doctest
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from scripts import write_gallery
from tersor.measure.schema import json_schema
from tersor.recipe import Recipe

DOCS = Path(__file__).parents[2] / "docs"
EN = DOCS / "en"
PAGES = [*sorted(DOCS.rglob("*.md")), DOCS.parent / "README.md"]


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line, text) of the fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start()) + 1, m[1]) for m in found]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT calls it
@pytest.mark.parametrize(
    "page",
    # The code of a Chinese page is that of its twin, as test_chinese.py checks.
    [pytest.param(p, marks=pytest.mark.slow if "zh" in p.parts else ()) for p in PAGES],
    ids=lambda p: p.stem,
)
def test_python_runs(page):
    """Blocks with a prompt run as one session, page by page; the others at least are Python."""
    session: dict[str, object] = {}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for line, text in blocks(page, "python"):
        if ">>>" not in text:
            compile(text, f"{page.name}:{line}", "exec")
            continue
        test = doctest.DocTestParser().get_doctest(text, session, f"{page.stem}-{line}", str(page), line)
        runner.run(test, clear_globs=False)
        session = test.globs
    assert runner.failures == 0, f"{runner.failures} examples of {page.name} fail, see the output above"


def test_theory_is_run():
    """A fence that is misspelt would silently run nothing."""
    examples = sum(text.count(">>>") for _, text in blocks(EN / "concepts/theory.md", "python"))
    assert examples > 50


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_recipes_load(page):
    for _, text in blocks(page, "yaml"):
        recipe = Recipe.from_yaml(text, page.name)
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_recipe_page_has_a_recipe():
    assert blocks(EN / "reference/recipes.md", "yaml")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_package_is_on_the_page_and_in_the_picture(language):
    """`python scripts/draw_rooms.py docs` draws the pictures anew."""
    contracts = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rooms = {name for row in contracts[0]["layers"] for name in re.findall(r"\((\w+)\)", row)} - {"training", "search"}
    files = ("concepts/how-it-is-built.md", "images/rooms.svg")
    page, picture = ((DOCS / language / name).read_text(encoding="utf-8") for name in files)
    assert {room for room in rooms if f"`{room}`" not in page or f">{room}" not in picture} == set()


def test_schema_is_current():
    """`python scripts/write_schema.py` writes it anew."""
    assert json.loads((EN / "reference/report.schema.json").read_text()) == json.loads(json_schema())


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every `$ tersor …` in the documentation."""
    lines = [
        (page.name, line)
        for page in PAGES
        for _, text in blocks(page, "console")
        for line in text.splitlines()
    ]
    return [
        (page, shlex.split(line.removeprefix("$ "), comments=True)[1:])
        for page, line in lines
        if line.startswith("$ tersor ")
    ]


def test_commands_exist():
    """Every subcommand and every option that the documentation shows is one of the command line's."""
    import typer

    from tersor.cli import app

    known = {
        name: {word for option in command.params for word in option.opts}
        for name, command in typer.main.get_command(app).commands.items()
    }
    assert len(commands()) > 8
    for page, (name, *words) in commands():
        assert name in known, f"{page}: no command `tersor {name}`"
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= known[name], f"{page}: tersor {name} has no {options - known[name]}"


@pytest.mark.parametrize("language", write_gallery.WORDS)
def test_the_gallery_is_current(language):
    """`python scripts/write_gallery.py` writes it anew."""
    text = write_gallery.page(language).read_text(encoding="utf-8")
    assert text == write_gallery.updated(text, language)
