"""Words for people, in their language: English stands in the code, other languages in catalogues beside this file.

What is shown now is translated by `_`. What is kept (notes in ``report.json``) is English, composed by `said`, so that
one file means the same everywhere; `shown` translates it when somebody looks at it. `make messages` collects the
sentences of all three into the catalogues. Errors stay English: people search for them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from gettext import GNUTranslations, NullTranslations
from pathlib import Path

from tersor.words.matching import Template

LANGUAGES = {"en": "English", "zh": "中文"}
# The context of sentences that `said` marks: any text is searched for these, and for no others.
KEPT = "kept"
_FOLDER = Path(__file__).parent
# Of sentences within sentences; a text of somebody else may nest them without end.
_DEPTH = 8
_chosen: ContextVar[str | None] = ContextVar("language", default=None)
# In the order of the GNU C library, after our own.
_VARIABLES = ("TERSOR_LANG", "LC_ALL", "LC_MESSAGES", "LANG")


def language() -> str:
    """The key of `LANGUAGES` in which words are shown: as chosen, else by the environment, else English.

    >>> with speaking("zh"):
    ...     language()
    'zh'
    """
    return _chosen.get() or _of_environment()


@contextmanager
def speaking(name: str | None) -> Iterator[None]:
    """Show words in a language inside the block; None leaves the choice to the environment."""
    if name is not None and name not in LANGUAGES:
        raise ValueError(f"no language {name!r}; known: {', '.join(LANGUAGES)}")
    before = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(before)


def _(message: str, **values: object) -> str:
    """A sentence in the language of the reader, with its values in place.

    >>> with speaking("zh"):
    ...     _("unknown")
    '未知'
    >>> _("{count} of {all} layers", count=1, all=3)
    '1 of 3 layers'
    """
    text = _translated(message, kept=False) if message else ""
    return text.format(**values) if values else text


def plural(one: str, many: str, count: int, **values: object) -> str:
    """As `_`, of a sentence with a number, which is ``{count}`` in it.

    >>> plural("{count} layer", "{count} layers", 1), plural("{count} layer", "{count} layers", 2)
    ('1 layer', '2 layers')
    """
    return _catalogue(language()).ngettext(one, many, count).format(count=count, **values)


def said(message: str, **values: object) -> str:
    """A sentence to keep, in English; `shown` translates it.

    >>> said("{name} stays in float", name="fc")
    'fc stays in float'
    """
    return message.format(**values) if values else message


def shown(text: str) -> str:
    """Translate kept English: a whole sentence that `said` marks, with values in it or not; else the text as it is.

    >>> with speaking("zh"):
    ...     shown("no reason known"), shown("of another library")
    ('原因未知', 'of another library')
    >>> with speaking("zh"):
    ...     shown("original.metric: unknown, because no reason known")
    'original.metric：未知，原因：原因未知'
    """
    return text if language() == "en" else _shown(text, _DEPTH)


def _shown(text: str, depth: int) -> str:
    if not text or not depth:
        return text
    if (found := _translated(text, kept=True)) != text:
        return found
    for template in _templates(language()):
        values = template.values(text)
        if values is not None:
            words = {name: _shown(value, depth - 1) for name, value in values.items()}
            return _translated(template.text, kept=True).format(**words)
    parts = text.split("; ")
    told = [_shown(part, depth - 1) for part in parts] if len(parts) > 1 else parts
    return text if told == parts else _("; ").join(told)


def _of_environment() -> str:
    given = next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), "en")
    name = given.replace("-", "_").partition("_")[0].partition(".")[0].lower()
    return name if name in LANGUAGES else "en"


@cache
def _catalogue(name: str) -> NullTranslations:
    file = _FOLDER / name / "LC_MESSAGES" / "tersor.mo"
    if name == "en":
        return NullTranslations()
    with file.open("rb") as stream:
        return GNUTranslations(stream)


def _translated(message: str, kept: bool) -> str:
    """A sentence as `said` marks it or as `_` does, or else the other way."""
    catalogue = _catalogue(language())
    ways = (lambda: catalogue.pgettext(KEPT, message), lambda: catalogue.gettext(message))
    found = (way() for way in (ways if kept else ways[::-1]))
    return next((text for text in found if text != message), message)


@cache
def _templates(name: str) -> tuple[Template, ...]:
    """The kept sentences of a catalogue with places for values, those with the most words of their own first."""
    start = f"{KEPT}\x04"
    messages = [m for m in vars(_catalogue(name)).get("_catalog", {}) if isinstance(m, str) and m.startswith(start)]
    found = [Template(m.removeprefix(start)) for m in messages if "{" in m]
    return tuple(sorted((one for one in found if one.usable), key=lambda template: -template.own))
