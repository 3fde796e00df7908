"""A slice of the fuzz suite with fixed seeds; ``make fuzz`` runs all of it."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.checkpoints.foreign.files import MAX_DEPTH, inside, parse_json
from tersor.checkpoints.foreign.pattern import matches
from tersor.errors import CheckpointError, RecipeError, TersorError
from tersor.recipe import Recipe
from tests.fuzz.mutations import mutated
from tests.fuzz.readers import NATIVE, READERS
from tests.fuzz.trying import in_processes, tried

QUICK = (
    "manifest", "network with an LSTM", "network without its zeros", "folder without its zeros", "report", "recipe",
    "array", "gptq", "records", "gguf", "narrowed",
)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("name", QUICK)
def test_a_few_mutations_of_what_python_reads(name, tmp_path):
    READERS[name].make(tmp_path)
    assert [found for seed in range(12) if (found := tried(name, tmp_path, seed)) != "fine"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_hundred_mutations_in_a_process_of_their_own(name):
    _, wrong = in_processes(name, 100)
    assert wrong == []


def test_the_same_seed_makes_the_same_file():
    content = json.dumps({"a": [1, 2, {"b": "c"}]}).encode()
    assert [mutated(content, "x.json", k) for k in range(20)] == [mutated(content, "x.json", k) for k in range(20)]
    assert len({mutated(content, "x.json", k) for k in range(50)}) > 20
    assert set(NATIVE) <= set(READERS)


@given(ANYTHING)
def test_json_within_bounds_is_read_as_it_is(value):
    text = json.dumps(value)
    found = parse_json(text.encode("utf-8", "surrogatepass"), "it", TersorError, "")
    assert json.dumps(found) == text


@given(st.binary(max_size=60))
def test_other_bytes_are_no_json(content):
    with contextlib.suppress(TersorError):
        parse_json(content, "it", TersorError, "")


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_depth_is_counted_outside_of_texts(depth, brackets):
    opening, closing = ("[", "]") if brackets == "[]" else ('{"[{":', "}")
    content = (opening * depth + '"]]]}}}\\"[[["' + closing * depth).encode()
    if depth == MAX_DEPTH:
        parse_json(content, "it", TersorError, "")
    else:
        with pytest.raises(TersorError, match="nested more than 64 deep"):
            parse_json(content, "it", TersorError, "")


@given(st.text(alphabet="ab.:/\\\x00 -", max_size=12))
@settings(max_examples=60)
def test_paths_stay_inside(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp()
    try:
        path = inside(folder, name, TersorError)
    except TersorError:
        return
    assert folder.resolve() in path.resolve().parents or path.resolve() == folder.resolve()


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(a|aa)+(a|aa)+$", "(.*)*(.*)*x", "(a*)*(a*)*(a*)*$"])
def test_patterns_that_go_back_take_no_time(pattern):
    matches(pattern, "a" * 2000 + "!")


@pytest.mark.parametrize(
    "pattern", ["(?=a)", "(?!a)", "(?<=a)", r"(a)\1", "(a", "[a", "*", "(" * 2000, "\\", "\ud800"]
)
def test_patterns_that_are_not_read_are_named(pattern):
    with pytest.raises(CheckpointError, match="is not read"):
        matches(pattern, "a")


@given(st.text(alphabet="abk: -[]{}*&!|>#'\"\n,?<1", max_size=40))
def test_any_text_is_a_recipe_or_one_error(text):
    with contextlib.suppress(RecipeError):
        Recipe.from_yaml(text, "mine")
