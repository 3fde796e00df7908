"""The pages show the files of examples/deploy as they are, in both languages."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MADE = {"__pycache__", "node_modules", "package-lock.json"}
FILES = sorted(f for f in (ROOT / "examples/deploy").rglob("*") if f.is_file() and not MADE.intersection(f.parts))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_example_stands_on_its_page(language):
    folder = ROOT / "docs" / language / "how-to"
    kinds = {file.parent.name for file in FILES}
    overview = (folder / "deploy.md").read_text(encoding="utf8")
    assert kinds == set(re.findall(r"\(deploy-(\w+)\.md\)", overview))
    for file in FILES:
        page = (folder / f"deploy-{file.parent.name}.md").read_text(encoding="utf8")
        blocks = re.findall(r"^```\w*\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        assert file.read_text(encoding="utf8") in blocks, f"{file} is not on its page as it is"
        assert f"examples/deploy/{file.parent.name}/{file.name}" in page
