"""Every page has its twin in Chinese, under the same path: as many headings, the same code, and Chinese around it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TWINS = {ROOT / "README.md": ROOT / "README.zh-CN.md"} | {
    page: DOCS / "zh" / page.relative_to(DOCS / "en")
    for suffix in ("md", "ipynb")
    for page in sorted((DOCS / "en").rglob(f"*.{suffix}"))
}
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PAIRS = [(page, twin) for page, twin in TWINS.items() if twin.exists() and page.suffix == ".md"]


def test_every_page_has_a_twin():
    assert [page.relative_to(ROOT).as_posix() for page, twin in TWINS.items() if not twin.exists()] == []
    orphans = {page for suffix in ("md", "ipynb") for page in (DOCS / "zh").rglob(f"*.{suffix}")} - set(TWINS.values())
    assert orphans == set()


@pytest.mark.parametrize(("page", "twin"), PAIRS, ids=[page.stem for page, _ in PAIRS])
def test_a_page_and_its_twin_say_the_same(page, twin):
    english, chinese = (path.read_text(encoding="utf8") for path in (page, twin))
    assert FENCE.findall(chinese) == FENCE.findall(english)
    english, chinese = FENCE.sub("", english), FENCE.sub("", chinese)
    assert levels(chinese) == levels(english)
    assert is_chinese(chinese), f"{twin.relative_to(ROOT)} holds hardly any Chinese"
    assert not is_chinese(english)


def levels(text: str) -> list[str]:
    """How deep each heading is."""
    return re.findall(r"^(#+) ", text, re.MULTILINE)


def is_chinese(text: str) -> bool:
    """Whether there are more Chinese characters than English words, outside of code, links and directives."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|^:::.*", "", text, flags=re.MULTILINE)
    return len(re.findall(r"[\u4e00-\u9fff]", text)) > len(re.findall(r"[A-Za-z]{2,}", text))
