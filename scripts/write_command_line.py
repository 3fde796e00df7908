"""Write every command into the reference page of each language: `python scripts/write_command_line.py`."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from tersor.cli import app
from tersor.cli.language import ENVIRONMENT, translate
from tersor.words import LANGUAGES, _, speaking

DOCS = Path(__file__).parents[1] / "docs"
START, END = "<!-- commands -->\n", "<!-- end of commands -->\n"
# What stands in the head of the tables; `messages` does not collect it, as no program prints it.
HEADS = {
    "en": ("argument or option", "default", "meaning", "variable"),
    "zh": ("参数或选项", "默认值", "含义", "变量"),
}


def page(language: str) -> Path:
    """The reference page."""
    return DOCS / language / "reference" / "command-line.md"


def commands() -> Iterator[tuple[str, Any]]:
    """The program and its commands, those of groups after their group, by the words that call them."""
    def inner(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield words, command
        for name, one in getattr(command, "commands", {}).items():
            yield from inner(f"{words} {name}", one)

    program = get_command(app)
    translate(program)
    return inner("tersor", program)


def written(language: str) -> str:
    """The tables of commands and environment variables in Markdown."""
    name, default, meaning, variable = HEADS[language]
    parts, common = [], set()
    with speaking(language):
        for words, command in commands():
            parts.append(f"### {words}\n\n{inspect.cleandoc(command.help)}\n")
            rows = [row for param in command.params if (row := _row(param)) not in common]
            if words == "tersor":
                common = set(rows)
            if rows:
                parts.append("\n".join([f"| {name} | {default} | {meaning} |", "|---|---|---|", *rows]) + "\n")
        rows = [f"| `{key.replace(', ', '`, `')}` | {_(text)} |" for key, text in ENVIRONMENT.items()]
        parts.append("\n".join([f"## {_('Environment variables:').rstrip(':：')}\n", f"| {variable} | {meaning} |",
                                "|---|---|", *rows]) + "\n")  # fmt: skip
    return "\n".join(parts)


def _row(param: Any) -> str:
    words = ", ".join(f"`{word}`" for word in [*param.opts, *param.secondary_opts] if word.startswith("-"))
    words = words or f"`{param.name.upper()}`"
    known = isinstance(param.default, str | int | Path) and not isinstance(param.default, bool)
    text = " ".join((param.help or "").split()).replace("|", "\\|")
    return f"| {words} | {f'`{param.default}`' if known else '–'} | {text} |"


def updated(text: str, language: str) -> str:
    """A page with the commands of today."""
    before, _start, rest = text.partition(START)
    after = rest.partition(END)[2]
    return f"{before}{START}\n{written(language)}\n{END}{after}"


if __name__ == "__main__":
    for name in LANGUAGES:
        page(name).write_text(updated(page(name).read_text(encoding="utf-8"), name), encoding="utf-8")
