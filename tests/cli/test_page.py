"""The page about the command line names every command, option, exit code and environment variable."""

import re

import pytest
from typer.main import get_command

from scripts import write_command_line
from tersor.cli import app
from tersor.cli.failures import FAILED, INTERRUPTED
from tersor.cli.language import ENVIRONMENT
from tersor.words import LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_is_current(language):
    """`python scripts/write_command_line.py` writes it anew."""
    text = write_command_line.page(language).read_text(encoding="utf-8")
    assert text == write_command_line.updated(text, language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_names_everything(language):
    text = write_command_line.page(language).read_text(encoding="utf-8")
    for words, command in write_command_line.commands():
        assert f"### {words}\n" in text
        assert all(f"`{word}`" in text for param in command.params for word in param.opts if word.startswith("-"))
    assert all(f"| `{code}` |" in text for code in (0, FAILED, 2, INTERRUPTED))
    assert all(f"`{name}`" in text for names in ENVIRONMENT for name in names.split(", "))
    table = text[text.index("## JSON") : text.index("## Comm" if language == "en" else "## 命令\n")]
    named = set(re.findall(r"`([a-z]+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert set(get_command(app).commands) <= named
