"""Collect the sentences of the package into its catalogues: `make messages`.

Every `_("…")`, `plural("…", "…", n)`, `said("…")` in Python, and every `_("…")` in a page template, and what the
commands and options of the command line say. New sentences come untranslated, and a test fails until they are not.
"""

import inspect
import io
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from babel.messages import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tersor"
KEYWORDS = {"_": None, "said": None, "plural": (1, 2)}
METHODS = [("**.py", "python"), ("**.j2", "jinja2.ext:babel_extract")]
LANGUAGES = ("zh",)
HEADER = "# Words of Tersor. `make messages` keeps this file and compiles it."
# The same sentences make the same bytes, whenever they are collected.
_DATE = datetime(2026, 1, 1, tzinfo=UTC)


def collected() -> Catalog:
    """The sentences, each with the files that say it."""
    found = Catalog(project="Tersor", charset="utf-8", fuzzy=False)
    options = {"**.j2": {"trim_blocks": "true", "lstrip_blocks": "true", "silent": "false"}}
    for name, _, message, *_rest in extract_from_dir(PACKAGE, METHODS, options, KEYWORDS):
        found.add(message, locations=[(name, 0)])
    for message in help_texts():
        found.add(message, locations=[("cli", 0)])
    return found


def help_texts() -> list[str]:
    """What `tersor --help` and each command's say: docstrings, options, panels."""
    from typer.main import get_command

    from tersor.cli import app

    def all_of(command: Any) -> list[Any]:
        return [command, *(found for one in getattr(command, "commands", {}).values() for found in all_of(one))]

    commands = all_of(get_command(app))
    texts = [text for one in commands for text in (one.help, *(getattr(p, "help", None) for p in one.params))]
    return [inspect.cleandoc(text) for text in texts if text]


def file(language: str, kind: str = "po") -> Path:
    """The catalogue of a language: `po` to write in, `mo` as the package reads it."""
    return PACKAGE / "words" / language / "LC_MESSAGES" / f"tersor.{kind}"


def catalogue(language: str) -> Catalog:
    """A language's catalogue as it stands."""
    with file(language).open("rb") as stream:
        return read_po(stream, locale=language)


def compiled(catalog: Catalog) -> bytes:
    """The catalogue as the package reads it."""
    stream = io.BytesIO()
    write_mo(stream, catalog)
    return stream.getvalue()


def updated(language: str) -> Catalog:
    """The catalogue with the sentences that the package says today, and no others."""
    before = catalogue(language) if file(language).exists() else Catalog(locale=language)
    found = Catalog(
        locale=language, project="Tersor", charset="utf-8", fuzzy=False, header_comment=HEADER,
        creation_date=_DATE, revision_date=_DATE, last_translator="Tersor", language_team=language,
        msgid_bugs_address="", copyright_holder="Tersor",
    )  # fmt: skip
    for message in collected():
        if message.id:
            known = before.get(message.id)
            found.add(message.id, known.string if known else "", locations=message.locations, flags=message.flags)
    return found


def untranslated(catalog: Catalog) -> list[str]:
    """The sentences that have no translation yet."""
    def texts(string: object) -> tuple[str, ...]:
        return (string,) if isinstance(string, str) else tuple(string or ("",))  # type: ignore[arg-type]

    return [str(message.id) for message in catalog if message.id and not all(texts(message.string))]


def main() -> int:
    """Update and compile every catalogue, and say what lacks a translation."""
    missing = []
    for language in LANGUAGES:
        catalog = updated(language)
        file(language).parent.mkdir(parents=True, exist_ok=True)
        with file(language).open("wb") as stream:
            write_po(stream, catalog, width=120, sort_output=True)
        file(language, "mo").write_bytes(compiled(catalog))
        missing += untranslated(catalog)
        print(f"{language}: {len(catalog)} sentences, {len(untranslated(catalog))} without a translation")
    for message in missing:
        print(f"  {message!r}")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
