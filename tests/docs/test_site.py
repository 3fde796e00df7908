"""The site: it builds, fetches nothing, its home leads to every page, and its search knows both languages."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

import pytest
from browser import CHECK, DESK, PHONE, browser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# The home has one line for all of them.
FOLDED = "decisions/"


def pages() -> set[str]:
    """The file of every page in English; a notebook becomes a page when the site is built."""
    found = [*(DOCS / "en").rglob("*.md"), *(DOCS / "en").rglob("*.ipynb")]
    return {page.relative_to(DOCS / "en").as_posix() for page in found}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_home_leads_to_every_page(language):
    """To notebooks as files, which GitHub shows; the site leads to their pages."""
    home = (DOCS / language / "index.md").read_text(encoding="utf8")
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", home)}
    assert {page for page in pages() - linked - {"index.md"} if not page.startswith(FOLDED)} == set()
    assert any(link.startswith(FOLDED) for link in linked)


def test_navigation_has_every_page():
    named = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf8")))
    assert {page.replace(".ipynb", ".md") for page in pages()} == named


def test_navigation_is_translated():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf8")
    nav = re.search(r"^nav:(.*?)^plugins:", text, re.MULTILINE | re.DOTALL)[1]
    translations = text.partition("nav_translations:")[2]
    same = {"Tersor", "Python"}
    titles = set(re.findall(r"^ *- ([^:\n]+):", nav, re.MULTILINE)) - same
    assert {title for title in titles if f" {title}: " not in translations} == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_it_builds_and_fetches_nothing(site):
    """Nothing that a browser loads comes from elsewhere."""
    found = list(site.rglob("*.html"))
    assert len(found) >= 2 * len(pages())
    for page in found:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=.?(?:https?:)?//[^ >]+", text)
        loaded += [tag for tag in re.findall(r"<link[^>]*>", text) if re.search(r"href=.?(?:https?:)?//", tag)]
        assert not [tag for tag in loaded if not re.search("canonical|alternate", tag)], page


@pytest.mark.slow
def test_header_has_languages_themes_and_repository(site):
    for home, other in (("index.html", "zh"), ("zh/index.html", "en")):
        text = (site / home).read_text(encoding="utf8")
        assert f"hreflang={other}" in text.replace('"', "")
        assert text.count("data-md-color-media") >= 3
        assert "https://github.com/tersor/tersor" in text
        assert "notebooks/cnn/" in text
        assert "notebooks/cnn.ipynb" not in text


@pytest.mark.slow
def test_search_knows_both_languages(site):
    """Chinese has no spaces: words are parted by zero-width ones, at which the search splits, too."""
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf8"))
    found = {entry["location"]: entry["title"] + entry["text"] for entry in index["docs"]}
    assert "calibration" in found["tutorials/getting-started/"] + found["tutorials/getting-started/#write-a-task"]
    chinese = "".join(text for location, text in found.items() if location.startswith("zh/"))
    words = re.split(index["config"]["separator"], chinese)
    assert {"量化", "校准", "精度"} <= set(words)


# Types into the search, and gives the links that it finds, when it has found some.
SEARCH = """(async () => {
  const input = document.querySelector(".md-search__input")
  for (let tried = 0; tried < 150; tried++) {
    input.focus()
    input.value = "QUERY"
    for (const kind of ["input", "keyup"]) input.dispatchEvent(new Event(kind, {bubbles: true}))
    await new Promise(done => setTimeout(done, 200))
    const found = [...document.querySelectorAll(".md-search-result__link")].map(link => link.getAttribute("href"))
    if (found.length) return found
  }
  return []
})()"""


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """The site, served."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
def test_a_browser_finds_pages(address):
    with browser() as tab:
        for home, query, page in (("", "troubleshooting", ""), ("zh/", "故障排查", "zh/"), ("zh/", "故障", "zh/")):
            tab.open(address + home)
            found = tab.run(SEARCH.replace("QUERY", query))
            assert any(f"{page}how-to/troubleshooting/" in link for link in found), (query, found)


@pytest.mark.slow
def test_nothing_overlaps_or_overflows(address):
    with browser() as tab:
        for page in ("", "zh/", "concepts/which-tool/"):
            for width, dark in product((DESK, PHONE), (False, True)):
                tab.open(address + page, width, dark)
                # On a phone the navigation is a drawer outside of the window.
                tab.run("document.querySelector('.md-sidebar--primary').remove()")
                assert tab.run(CHECK) == [], (page, width, dark)
