"""Words in the language of the reader: which language, what is kept in English, and what a catalogue must hold."""

import re
import string

import pytest

from scripts import messages
from tersor.words import LANGUAGES, _, language, said, shown, speaking
from tersor.words.matching import Template

VARIABLES = ("TERSOR_LANG", "LC_ALL", "LC_MESSAGES", "LANG")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh-Hans"}, "zh"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "TERSOR_LANG": "zh"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh"),
    ],
)
def test_the_environment_names_the_language(monkeypatch, environment, expected):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


def test_a_block_speaks_its_language_and_leaves_the_others():
    with speaking("zh"):
        with speaking("en"):
            assert _("unknown") == "unknown"
        assert _("unknown") == "未知"
    with pytest.raises(ValueError, match="'fr'; known: en, zh"), speaking("fr"):
        pass


def test_what_is_kept_is_english_until_it_is_shown():
    with speaking("zh"):
        kept = said("{fields}: unknown, because {reason}", fields="{x}", reason="no reason known")
        assert kept == "{x}: unknown, because no reason known"
        assert re.search("[一-鿿]", shown(kept))
        assert "{x}" in shown(kept)
        assert shown(f"{kept}; of another library").endswith("；of another library")
        assert shown("one; another") == "one; another"
    assert shown(kept) == kept


def test_a_template_gives_back_the_values_it_was_filled_with():
    found = Template("{a} is {b} of {c}")
    assert found.values("x is y of z") == {"a": "x", "b": "y", "c": "z"}
    assert found.values(" is y of z") is None
    assert found.values("x is y") is None
    assert not Template("{a}{b} stays").usable
    assert not Template("{a}").usable


def _places(text):
    return sorted(name for _, name, *_rest in string.Formatter().parse(text) if name is not None)


def _strings(message):
    return (message.string,) if isinstance(message.string, str) else message.string


@pytest.mark.parametrize("name", [name for name in LANGUAGES if name != "en"])
class TestCatalogue:
    def test_holds_every_sentence_and_no_other(self, name):
        """`make messages` collects them."""
        assert {m.id for m in messages.catalogue(name)} == {m.id for m in messages.updated(name)}

    def test_lacks_no_translation(self, name):
        assert messages.untranslated(messages.catalogue(name)) == []

    def test_is_compiled(self, name):
        assert messages.file(name, "mo").read_bytes() == messages.compiled(messages.catalogue(name))

    def test_keeps_the_places_of_values(self, name):
        for message in messages.catalogue(name):
            if message.id:
                one = message.id if isinstance(message.id, str) else message.id[1]
                assert [_places(one)] * len(_strings(message)) == [_places(text) for text in _strings(message)], one


def test_a_text_of_somebody_else_is_shown_as_it_is_where_nothing_can_be_found():
    with speaking("zh"):
        assert shown("[default: x]") == "[default: x]"
        deep = "; ".join(["a.b: unknown, because c"] * 3000)
        assert shown(deep).endswith(shown("a.b: unknown, because c")) or shown(deep)
        nested = "a.b: unknown, because " * 3000 + "c"
        assert shown(nested).endswith("c")


@pytest.mark.parametrize("text", ["[default: {}]", "{count:,} values are known", "{0} of them"])
def test_a_template_whose_values_would_be_others_is_not_searched(text):
    assert not Template(text).usable
