"""Every form of a recipe means the same steps, and what is not understood is refused with its path."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import RecipeError
from tersor.pipeline.folder.host import FOLDER
from tersor.pipeline.graph.host import GRAPH
from tersor.pipeline.modules.host import MODULES
from tersor.recipe import PRESETS, STEPS, Quantization, Quantize, Recipe, Rule, Step

SAVED = Path(__file__).parents[1] / "data"
WRITTEN = sorted([*SAVED.glob("v*/recipes/preset-*"), *SAVED.glob("v*/*/*/recipe.yaml")])
INT4 = {"format": "int4", "granularity": "group:32"}


class Toy(Step):
    """A step of a test: one class, one entry in the table."""

    name: ClassVar[str] = "toy"
    phase: ClassVar = "float"

    strength: float = 0.5

    def __call__(self, subject: Any, task: Any, stages: Any) -> Any:
        return replace(subject, history=(*subject.history, self.strength))


@dataclass(frozen=True)
class Record:
    history: tuple[float, ...] = ()


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(STEPS, "toy", Toy)


@pytest.mark.parametrize("path", WRITTEN, ids=str)
def test_files_of_earlier_versions_are_written_back_byte_by_byte(path):
    text = path.read_text(encoding="utf8")
    renamed = text.replace("range: runtime", "range: dynamic")
    assert Recipe.from_yaml(text).to_yaml() == renamed


options = st.fixed_dictionaries(
    {},
    optional={
        "weights": st.fixed_dictionaries({}, optional={"format": st.just("int4"), "range": st.just("mse")}),
        "equalize": st.sampled_from(["auto", "on"]),
        "sparsity": st.sampled_from([None, "2:4"]),
        "rules": st.lists(st.sampled_from([{"layer": "a", "keep": "fp16"}, {"op": "b", "weights": {"range": "mse"}}])),
    },
)


@given(options, st.none() | st.sampled_from([n for n, p in PRESETS.items() if len(p().steps) == 1]), st.integers(0, 9))
def test_all_forms_are_one_recipe(given_options, base, seed):
    """Flat and as a step, alone and on a preset; and each reads back from what it writes."""
    about = {"name": "x", "seed": seed} | ({"base": base} if base else {})
    flat = Recipe.from_yaml(yaml.safe_dump({**about, **given_options}))
    steps = Recipe.from_yaml(yaml.safe_dump({**about, "steps": [{"quantize": given_options or None}]}))
    assert flat == steps
    assert flat.to_yaml() == steps.to_yaml()
    assert Recipe.from_yaml(flat.to_yaml()) == flat


def test_a_steps_value_is_options_a_preset_or_nothing():
    read = Recipe.from_yaml
    assert read("steps: [quantize: int4-gptq]").quantize == PRESETS["int4-gptq"]().quantize
    assert read("steps: [quantize: {equalize: off}]").quantize == Quantize(equalize="off")
    for nothing in ("steps: [quantize: ]", "steps: [quantize: {}]", "steps: [quantize]", "{}"):
        assert read(nothing).steps == (Quantize(),)


def test_a_base_is_extended_field_by_field():
    text = "{base: int4-awq, weights: {granularity: channel}, bias_correction: true, rules: [{layer: b, keep: fp16}]}"
    recipe, base = Recipe.from_yaml(text), PRESETS["int4-awq"]()
    assert recipe.weights == base.weights.model_copy(update={"granularity": "channel"})
    assert (recipe.activations, recipe.awq, recipe.bias_correction) == (base.activations, True, True)
    assert recipe.name == "custom", "it is not the preset any more"
    wide = Recipe.from_yaml("{base: int8-static, activations: {format: int16}}")
    assert wide.activations == Quantization(format="int16", range="mse"), "also what the preset leaves to its default"
    assert Recipe(base="int4-awq", weights=Quantization(granularity="channel")).weights == recipe.weights


def test_rules_of_the_base_come_first(monkeypatch):
    first, second = Rule(layer="a", keep="fp32"), Rule(layer="b", keep="fp16")
    monkeypatch.setitem(PRESETS, "ruled", lambda: Recipe(weights=INT4, rules=(first,)))
    recipe = Recipe.from_yaml("{base: ruled, rules: [{layer: b, keep: fp16}]}")
    assert (recipe.rules, recipe.weights) == ((first, second), Quantization(**INT4))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [quantize: {weights: {bits: 4}}]", r"unknown key `steps\.0\.quantize\.weights\.bits` \(value 4\)"),
        ("steps: [quantize: {weights: {format: int5}}]", r"`steps\.0\.quantize\.weights\.format`: unknown format"),
        ("steps: [quantize: {rules: [{layer: a, keep: int8}]}]", r"`steps\.0\.quantize\.rules\.0\.keep`"),
        ("steps: [quantise: ]", r"`steps\.0`: unknown step 'quantise' \(did you mean 'quantize'\?\); one of quantize"),
        ("steps: [quantize: int8-statik]", r"`steps\.0`: unknown preset .* \(did you mean 'int8-static'\?\)"),
        ("steps: [{quantize: {}, other: {}}]", r"`steps\.0`: a step is its name with its options"),
        ("steps: quantize", "`steps` is a list"),
        ("steps: []", "at least one step"),
        ("{steps: [quantize], weights: {}}", r"`weights` stands beside `steps`; .*`quantize: \{weights: …\}`"),
        ("{steps: [quantize], wieghts: {}}", "unknown key `wieghts`"),
        ("base: int8-statik", r"unknown preset 'int8-statik' \(did you mean 'int8-static'\?\)"),
        ("steps: [quantize, quantize: int8-static]", "steps `quantize` and `quantize` both quantize"),
        (
            "{base: int4-gptq, rules: [{layer: a, weights: {range: awq}}]}",
            r"weights: solver gptq takes the ranges minmax and mse.* by rules\.0 \(layer: a\), which inherits",
        ),
        ("rules: [{op: b, activations: {solver: gptq}}]", r"only weights are solved.* by rules\.0 \(op: b\)"),
    ],
)
def test_what_a_form_cannot_say_is_named(text, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.from_yaml(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [quantize, train: {lr: 1}]",
         r"`steps\.1\.train\.lr` \(value 1\) \(did you mean 'rate'\?\); one of epochs, steps, .*precision, blocks$"),
        ("steps: [quantize, train: {learning_rate: 1}]", "did you mean 'rate'"),
        ("steps: [quantize, train: {epoch: 1}]", "did you mean 'epochs'"),
        ("steps: [quantize, train: {quantizers: {weight: lsq}}]", r"'weights'\?\); one of weights, activations$"),
        ("steps: [quantize: {weights: {bits: 4}}]", r"did you mean 'format'\?\); one of format, "),
        ("steps: [quantize: {rules: [{layers: a, keep: fp32}]}]", "did you mean 'layer'"),
        ("wieghts: {}", r"did you mean 'weights'\?\); one of .*\brules\b"),
        ("{steps: [quantize], stpes: {}}", r"did you mean 'steps'\?\); one of name, description, steps, seed, base$"),
    ],
)  # fmt: skip
def test_an_unknown_key_comes_with_the_nearest_one_and_all_of_its_place(text, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.from_yaml(text)


def test_the_options_of_a_place_are_listed_once():
    with pytest.raises(RecipeError, match=r"'rate'.*'epochs'") as error:
        Recipe.from_yaml("steps: [quantize, train: {lr: 1, epoch: 1}]")
    assert str(error.value).count("freeze_batchnorm") == 1


def test_a_toy_step_costs_one_class_and_one_entry(toy):
    recipe = Recipe.from_yaml("{name: two, steps: [toy: {strength: 2}, quantize: int8-tflite], seed: 4}")
    assert recipe.steps == (Toy(strength=2), PRESETS["int8-tflite"]().quantize)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert yaml.safe_load(recipe.to_yaml())["steps"][0] == {"toy": {"strength": 2.0}}
    alone = Recipe.from_yaml("steps: [toy: ]")
    assert Recipe.from_yaml(alone.to_yaml()) == alone
    subject = Record()
    for step in alone.steps:
        subject = step(subject, None, None)
    assert subject.history == (0.5,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [quantize, toy]", "`toy` edits the float model, so it cannot stand behind `quantize`"),
        ("steps: [toy: {weights: 1}]", r"unknown key `steps\.0\.toy\.weights`"),
        ("{base: int8-static, steps: [toy]}", "leaves out `quantize` of the base"),
    ],
)
def test_the_rules_of_order_hold_for_any_step(text, said, toy):
    with pytest.raises(RecipeError, match=said):
        Recipe.from_yaml(text)


def test_a_base_extends_the_step_wherever_it_stands(toy):
    recipe = Recipe.from_yaml("{base: int4-gptq, steps: [toy, quantize: {weights: {granularity: channel}}]}")
    assert recipe.quantize.weights == Quantization(format="int4", granularity="channel", range="mse", solver="gptq")


def test_options_of_the_only_step_are_the_recipes(toy):
    recipe = Recipe(equalize="off", weights=Quantization(**INT4))
    assert (recipe.equalize, recipe.weights.format, recipe.rules) == ("off", "int4", ())
    changed = recipe.model_copy(update={"equalize": "on", "name": "y", "seed": 2})
    assert (changed.equalize, changed.weights, changed.name, changed.seed) == ("on", recipe.weights, "y", 2)
    with pytest.raises(RecipeError, match=r"no key `equalise` \(did you mean 'equalize'\?\)"):
        recipe.model_copy(update={"equalise": "on"})
    two = Recipe(steps=(Toy(), Quantize(**{"equalize": "off"})))
    with pytest.raises(AttributeError, match=r"several steps; read `recipe\.quantize\.equalize`"):
        _ = two.equalize
    assert two.model_copy(update={"equalize": "on"}).quantize.equalize == "on"
    with pytest.raises(RecipeError, match="no step `quantize`, only toy"):
        _ = Recipe(steps=(Toy(),)).quantize


def test_the_step_is_done_by_the_subjects_host():
    asked = []
    subject = SimpleNamespace(host=SimpleNamespace(quantize=lambda *given: asked.append(given) or "done"))
    step = Quantize()
    assert step(subject, None, "stages") == "done"
    assert asked == [(step, subject, None, "stages")]


@pytest.mark.parametrize("host", [GRAPH, FOLDER, MODULES], ids=lambda h: h.host)
def test_hosts_refuse_by_default(host, toy, monkeypatch):
    with pytest.raises(RecipeError, match=f"step `toy` of the recipe custom is not taken by {host.host}"):
        host.check(Recipe(steps=(Toy(), Quantize())))

    class Newer(Quantize):
        frobnicate: int = 1

    host.check(Recipe(steps=(Newer(),)))
    with pytest.raises(RecipeError, match=f"`frobnicate: 2` of the recipe custom is not taken by {host.host}"):
        host.check(Recipe(steps=(Newer(frobnicate=2),)))


@pytest.mark.parametrize(
    ("host", "given_options", "said"),
    [
        (GRAPH, {"awq": True}, "`awq` of the recipe custom is for folders in the Hugging Face layout"),
        (GRAPH, {"sparsity": "2:4"}, "`sparsity: 2:4` of .* is for folders"),
        (GRAPH, {"fallback": "float"}, "`fallback: float` of .* is for folders"),
        (GRAPH, {"pruner": {"sparsegpt": {"damping": 0.02}}}, "`pruner` of .* is for folders"),
        (GRAPH, {"rules": [{"op": "a", "sparsity": "50%"}]}, r"`sparsity: 50%` of the rule \(op: a\) .* is for"),
        (FOLDER, {"equalize": "on"}, "`equalize: on` of .* is not done to folders"),
        (FOLDER, {"smooth_alpha": 0}, r"`smooth_alpha: 0\.0` of .* is not done to folders"),
        (MODULES, {"smooth": "on"}, "`smooth: on` of .* needs calibration"),
        (MODULES, {"rotate": True}, "`rotate` of .* is for folders"),
    ],
)
def test_hosts_refuse_by_name_what_they_do_not_do(host, given_options, said):
    with pytest.raises(RecipeError, match=f"{said}.*; leave it out"):
        host.check(Recipe(**given_options))


@pytest.mark.parametrize("host", [GRAPH, FOLDER, MODULES], ids=lambda h: h.host)
def test_asking_for_nothing_is_no_asking(host):
    off = {"equalize": "off", "smooth": "off", "bias_correction": False, "sparsity": None, "awq": False}
    host.check(Recipe(**off, rules=[{"op": "a", "keep": "fp16"}, {"op": "b", "weights": {}, "sparsity": None}]))
