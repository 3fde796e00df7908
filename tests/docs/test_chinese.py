"""Every page has its twin in Chinese: the same headings, tables, links and code, the words between them in Chinese."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TWINS = {
    ROOT / "README.md": ROOT / "README.zh-CN.md",
    **{page: DOCS / "zh" / page.relative_to(DOCS / "en") for page in sorted((DOCS / "en").rglob("*.md"))},
}
SWITCH = {"README.md", "README.zh-CN.md"}
CODE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
WORD = re.compile(r"(?<!\S)[a-z]+(?!\S)")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def shape(text: str) -> dict[str, object]:
    prose = CODE.sub("", text)
    links = set(re.findall(r"\]\(([^)#][^)]*)\)", prose)) - SWITCH
    return {
        "code": CODE.findall(text),
        "headings": [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)],
        "columns of table rows": [line.count("|") for line in prose.splitlines() if line.lstrip().startswith("|")],
        "links": sorted(link.replace("docs/zh/", "docs/en/").replace(".zh-CN.md", ".md") for link in links),
    }


def untranslated(text: str) -> list[str]:
    """Lines with several English words and no Chinese character; code, names and figures need no translation."""
    prose = re.sub(r"<!--.*?-->", "", CODE.sub("", text), flags=re.DOTALL)
    words = {line: re.sub(r"`[^`]*`|\]\([^)]*\)|\{#.*?\}|<[^>]*>", "", line) for line in prose.splitlines()}
    return [line for line, left in words.items() if len(WORD.findall(left)) > 3 and not CHINESE.search(left)]


@pytest.mark.parametrize("page", TWINS, ids=lambda page: page.stem)
def test_twin_says_the_same(page):
    english, chinese = (path.read_text(encoding="utf8") for path in (page, TWINS[page]))
    assert shape(chinese) == shape(english)
    assert CHINESE.search(chinese)
    assert not untranslated(chinese)


def test_no_page_is_chinese_alone():
    assert set((DOCS / "zh").rglob("*.md")) == set(TWINS.values()) - {ROOT / "README.zh-CN.md"}


def test_what_is_left_in_english_is_seen():
    assert untranslated("The weights stay packed in memory and the products are computed in FP32.\n")
    assert not untranslated("权重在内存中保持打包形式。\n| `int8-static` | `tersor inspect` | – |\n")
