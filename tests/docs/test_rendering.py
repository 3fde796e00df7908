"""README and every page render: tables are tables, links are links and lead somewhere."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown import Markdown
from markdown_it import MarkdownIt
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FIRST = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [page for page in [*FIRST, *sorted(DOCS.rglob("*.md"))] if page.exists()]
# A Python domain's names get their anchors when the site is built.
GENERATED = DOCS / "en/reference/python.md"


class Reader(HTMLParser):
    """Collects the links, the anchors, and the text that is neither code nor in a table."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text, self.inside = "", 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links += [found[key] for key in ("href", "src") if found.get(key)]
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.inside += tag in ("code", "pre", "table")

    def handle_endtag(self, tag):
        self.inside -= tag in ("code", "pre", "table")

    def handle_data(self, data):
        self.text += "" if self.inside else data


def of_the_site(text: str) -> str:
    """As MkDocs renders it: the extensions of mkdocs.yml that change the text."""
    toc = {"toc": {"slugify": slugify(case="lower")}}
    return Markdown(
        extensions=["admonition", "attr_list", "tables", "toc", "pymdownx.superfences"], extension_configs=toc
    ).convert(text)


def of_github(text: str) -> str:
    """CommonMark with tables and HTML, as GitHub shows README and docs/, with the anchors that it gives headings.

    An anchor of attr_list's, `{#name}`, counts as the site's: GitHub would show it as text.
    """
    found = MarkdownIt("js-default", {"html": True}).render(text)
    return re.sub(r"<(h\d)>(.*?)</\1>", _with_anchor, found)


def _with_anchor(heading: re.Match) -> str:
    tag, text = heading.groups()
    named = re.search(r" \{ ?#(\S+?) ?\}$", text)
    anchor = named[1] if named else slugify(case="lower")(re.sub("<.*?>", "", text), "-")
    return f'<{tag} id="{anchor}">{text}</{tag}>'


RENDERERS = {"site": of_the_site, "GitHub": of_github}


@cache
def read(page: Path, renderer: str) -> Reader:
    return Reader(RENDERERS[renderer](page.read_text(encoding="utf8")))


def target(page: Path, path: str) -> Path:
    """The file of a link; a page that has no translation is read in English."""
    found = (page.parent / path).resolve() if path else page
    translated = DOCS / "zh"
    if not found.exists() and found.is_relative_to(translated):
        return DOCS / "en" / found.relative_to(translated)
    return found


def broken(page: Path, renderer: str) -> list[str]:
    """The links inside the repository that lead to no file or to no heading."""
    found = []
    for link in read(page, renderer).links:
        path, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        file = target(page, path)
        known = anchor in read(file, renderer).anchors if anchor and file.suffix == ".md" and file.exists() else True
        if not file.exists() or not (known or file == GENERATED):
            found.append(link)
    return found


@pytest.mark.parametrize("renderer", RENDERERS)
def test_every_page_renders(renderer):
    wrong = {}
    for page in PAGES:
        text = read(page, renderer).text
        rows = [line for line in text.splitlines() if re.match(r"\s*\|", line) or "|---" in line]
        raw = re.findall(r"\]\([^)]*\)?|\[`|\*\*\w[^*]*\*\*|^#+ .*|```", text, re.MULTILINE)
        if rows or raw or broken(page, renderer):
            wrong[page.relative_to(ROOT).as_posix()] = rows + raw + broken(page, renderer)
    assert wrong == {}


def test_a_split_table_and_a_dead_link_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A b\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n| 3 | 4 |\n\n[x](#a-b) [y](#c) [z](none.md)\n")
    for renderer in RENDERERS:
        assert "| 3 | 4 |" in read(page, renderer).text
        assert broken(page, renderer) == ["#c", "none.md"]
