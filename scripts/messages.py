"""Collect the sentences of the package into its catalogues: `make messages`.

Every `_("…")`, `plural("…", "…", n)`, `said("…")` in Python, and every `_("…")` in a page template, and what the
commands and options of the command line say. New sentences come untranslated, and a test fails until they are not.
"""

import ast
import inspect
import io
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from babel.messages import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from tersor.words import KEPT

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tersor"
# How many of the first arguments are sentences.
KEYWORDS = {"_": 1, "said": 1, "plural": 2}
LANGUAGES = ("zh",)
HEADER = "# Words of Tersor. `make messages` keeps this file and compiles it."
# The same sentences make the same bytes, whenever they are collected.
_DATE = datetime(2026, 1, 1, tzinfo=UTC)


def collected() -> Catalog:
    """The sentences, each with the files that say it."""
    found = Catalog(project="Tersor", charset="utf-8", fuzzy=False)
    for file in sorted(PACKAGE.rglob("*.py")):
        for message, context in said_in(file.read_text(encoding="utf-8")):
            found.add(message, locations=[(str(file.relative_to(PACKAGE)), 0)], context=context)
    options = {"**.j2": {"trim_blocks": "true", "lstrip_blocks": "true", "silent": "false"}}
    methods, keywords = [("**.j2", "jinja2.ext:babel_extract")], {"_": None, "plural": (1, 2)}
    for name, _, message, *_rest in extract_from_dir(PACKAGE, methods, options, keywords):
        found.add(message, locations=[(name, 0)])
    for message in help_texts():
        found.add(message, locations=[("cli", 0)])
    return found


def said_in(source: str) -> Iterator[tuple[str | tuple[str, ...], str | None]]:
    """The sentences of Python code, with their context: constants in calls; a name is that of a constant.

    >>> list(said_in("_('{n} layers', n=f'{3}'), plural('{count} x', '{count} xs', 2), _(NAME), said('kept')"))
    [('{n} layers', None), (('{count} x', '{count} xs'), None), ('kept', 'kept')]
    """
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in KEYWORDS and call.args:
            words = call.args[: KEYWORDS[call.func.id]]
            if any(isinstance(word, ast.JoinedStr) for word in words):
                raise ValueError(f"an f-string cannot be translated: {ast.unparse(call)}")
            texts = tuple(w.value for w in words if isinstance(w, ast.Constant) and isinstance(w.value, str))
            if texts:
                yield texts if len(texts) > 1 else texts[0], KEPT if call.func.id == "said" else None


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
            known = before.get(message.id, message.context)
            string = known.string if known else ""
            found.add(
                message.id, string, locations=message.locations, flags=message.flags, context=message.context
            )  # fmt: skip
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
