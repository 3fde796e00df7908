"""A recipe file that is too deep, too long, or holds values that cannot be, gives one error at once."""

import time
from itertools import pairwise

import pytest

from tersor.errors import RecipeError
from tersor.recipe import Recipe
from tersor.recipe.recipe import resolve

NAMES = "abcdefghij"


def repeated(item):
    """Each line names the one before nine times."""
    lines = [f"{after}: &{after} {item(before)}" for before, after in pairwise(NAMES)]
    return "\n".join(["a: &a {k: 1}", *lines])


BAD = {
    "aliases": repeated(lambda name: f"[{', '.join([f'*{name}'] * 9)}]"),
    "merged aliases": repeated(lambda name: f"{{<<: [{', '.join([f'*{name}'] * 9)}]}}"),
    "a circle": "rules: &r [*r]",
    "lists in lists": "rules: " + "[" * 40_000,
    "mappings in mappings": "{weights: " * 40,
    "indented": "rules:\n" + "".join(f"{' ' * k}-\n" for k in range(100)),
    "many keys": "\n".join(f"key{k}: 1" for k in range(12_000)),
    "a large file": "name: " + "n" * 300_000,
    "a long number": "seed: " + "7" * 6000,
    "base 60": "seed: 1" + ":59" * 9000,
    "beyond 64 bits": "seed: 18446744073709551617",
    "a day that is none": "name: 2023-02-29",
    "a month that is none": "seed: 2023-00-10T00:00:00Z",
    "an hour that is none": "seed: 2023-01-10T25:00:00Z",
    "a tag": "name: !!timestamp noon",
    "an object of Python": "name: !!python/name:os.system",
    "a zero byte": "name: a\x00b",
    "a key that is a list": "? [weights]\n: 1",
    "a merged number": "<<: 3",
    "a group without measure": "weights: {granularity: 'group:99999999999999999999'}",
    "an axis without measure": f"weights: {{granularity: 'channel:{'9' * 5000}'}}",
}


@pytest.mark.parametrize("case", BAD)
def test_one_error_at_once(case):
    start = time.process_time()
    with pytest.raises(RecipeError, match=r"^mine") as caught:
        Recipe.from_yaml(BAD[case], "mine")
    assert time.process_time() - start <= 0.1
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize("content", [b"name: caf\xe9", b"\xff\xfe\x00", b"\x80"])
def test_a_file_of_another_encoding_is_named(tmp_path, content):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"mine\.yaml is not UTF-8"):
        resolve(tmp_path / "mine.yaml")


def test_an_alias_that_repeats_little_is_read():
    text = "rules: [{layer: a, weights: &w {format: int4}}, {layer: b, weights: *w}]"
    assert [str(rule.weights.format) for rule in Recipe.from_yaml(text).rules] == ["int4", "int4"]


@pytest.mark.parametrize("name", ["x" * 5000, "a\x00b", "y" * 300 + ".yaml"])
def test_a_name_that_no_file_has_is_no_recipe(name):
    with pytest.raises(RecipeError, match="no recipe"):
        resolve(name)
