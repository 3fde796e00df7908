"""Recipes are exact: what is read back is what was written, and what is not understood is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tersor.errors import RecipeError
from tersor.numerics.formats import FORMATS
from tersor.numerics.spec import QuantSpec
from tersor.recipe import PRESETS, Quantization, Recipe, Rule, activation_ranges, resolve, weight_ranges


def quantizations(ranges):
    granularities = st.sampled_from(["auto", "tensor", "channel", "channel:1", "group:32", "filters:16", "token"])
    return st.builds(
        Quantization,
        format=st.sampled_from(["auto", *FORMATS]),
        granularity=granularities,
        symmetric=st.sampled_from([None, True, False]),
        range=st.sampled_from(ranges),
        rounding=st.sampled_from(["nearest", "stochastic"]),
    )


globs = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
kept = st.builds(Rule, layer=globs, op=st.none() | globs, keep=st.sampled_from(["fp32", "fp16", "bf16"]))
partial = st.dictionaries(st.sampled_from(["format", "granularity"]), st.just("auto"))
changed = st.builds(
    Rule,
    op=globs,
    weights=quantizations(weight_ranges()) | partial,
    activations=quantizations(activation_ranges()) | partial,
    sparsity=st.sampled_from([None, "2:4", "50% per row"]),
)
recipes = st.builds(
    Recipe,
    name=globs,
    weights=quantizations(weight_ranges()),
    activations=quantizations(activation_ranges()),
    equalize=st.sampled_from(["auto", "on", "off"]),
    bias_correction=st.booleans(),
    correction_samples=st.integers(1, 10**6),
    rules=st.lists(kept | changed, max_size=3).map(tuple),
    seed=st.integers(0, 2**63 - 1),
)


@given(recipes)
def test_yaml_reads_back_exactly(recipe):
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wieghts: {}", r"unknown key `wieghts`"),
        ("weights: {bits: 4}", r"unknown key `weights\.bits` \(value 4\)"),
        ("weights: {format: int5}", r"`weights\.format`: unknown format 'int5'; one of auto, .*int4"),
        ("weights: {granularity: row}", r"weights\.granularity.*row"),
        ("weights: {range: kl}", "weights take one of"),
        ("activations: {range: best}", "unknown range 'best'"),
        ("rules: [{keep: fp16}]", r"rules\.0.*needs `layer` or `op`"),
        ("rules: [{layer: head}]", "would change nothing"),
        ("rules: [{layer: a, keep: fp32, weights: {}}]", "cannot also have `weights`"),
        ("rules: [{layer: a, keep: fp16, sparsity: null}]", "cannot also have `sparsity`"),
        ("rules: [{layer: a, sparsity: half}]", r"rules\.0\.sparsity.*half"),
        ("sparsity: '4:2'", "`sparsity`.*'4:2' is none of"),
        ("pruner: random", "unknown pruner 'random'; one of magnitude"),
        ("rules: [{op: a, pruner: {sparsegpt: {dampin: 1}}}]", r"`rules\.0\.pruner`.* has no option dampin"),
        ("rules: [{layer: a, keep: int8}]", r"rules\.0\.keep"),
        ("correction_samples: 0", "correction_samples"),
        ("- a list", "mapping"),
        ("a: [", "not YAML"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_what_is_not_understood_is_named(text, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.from_yaml(text)


def test_auto_means_the_engines_own():
    seven = QuantSpec("int8", "channel")
    assert Quantization().spec(seven) == seven
    spec = Quantization(format="int4", granularity="group:8").spec(seven)
    assert (spec.format.name, spec.granularity.size, spec.symmetric) == ("int4", 8, True)
    assert not Quantization(format="uint8").spec(seven).symmetric


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_functions_that_return_recipes(name):
    assert resolve(name) == PRESETS[name]()
    assert resolve(name).name == name


def test_names_and_files(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(Recipe(name="mine").to_yaml())
    assert resolve(path).name == "mine"
    with pytest.raises(RecipeError, match=r"did you mean 'int8-static'\?"):
        resolve("int8-statik")
    with pytest.raises(RecipeError, match="no recipe file"):
        resolve(tmp_path / "other.yaml")
    path.write_text("nmae: x")
    with pytest.raises(RecipeError, match=r"mine\.yaml: unknown key `nmae`"):
        resolve(path)


def test_recipes_are_values():
    with pytest.raises(ValidationError):
        Recipe().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "given",
    [
        {"weights": Quantization(solver="gptq", range="easyquant")},
        {"weights": Quantization(solver="gptq", rounding="stochastic")},
        {"activations": Quantization(solver="gptq")},
        {"rules": (Rule(op="linear", activations=Quantization(solver="gptq")),)},
    ],
)
def test_what_gptq_would_ignore_is_refused(given):
    words = r"gptq takes the ranges minmax and mse|gptq rounds to nearest|only weights are solved"
    with pytest.raises(ValueError, match=words):
        Recipe(**given)
