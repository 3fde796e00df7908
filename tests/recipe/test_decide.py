"""What rules decide for a layer: inherited, merged, validated together, with the reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.errors import CheckpointError, RecipeError
from tersor.numerics.spec import QuantSpec
from tersor.recipe import Quantization, Quantize, Recipe, Rule, decide, with_names

INT8 = QuantSpec("int8", "channel")
GPTQ = Quantization(format="int4", granularity="group:32", range="mse", solver="gptq")


def decided(step, name="a", op="linear", **options):
    return decide(name, op, step, INT8, **options)


fields = {"format": ["int4", "int8"], "granularity": ["channel", "tensor"], "range": ["minmax", "mse"]}
partial = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in fields.items()})


@given(partial, st.lists(st.tuples(st.sampled_from(["a", "b", "*"]), partial), max_size=4))
def test_a_field_is_that_of_the_last_rule_that_names_it(own, changes):
    rules = tuple(Rule(layer=layer, weights=Quantization(**change)) for layer, change in changes)
    step = Quantize(weights=Quantization(**own), rules=rules)
    expected = own | {}
    for layer, change in changes:
        if layer in ("a", "*"):
            expected |= change
    assert decided(step).weights == Quantization(**expected)
    again = Recipe.from_yaml(Recipe(steps=(step,)).to_yaml()).quantize
    assert decided(again).weights == Quantization(**expected), "a file names what the rule names, and no more"


def test_a_rule_that_names_every_field_replaces_all():
    """As files of earlier versions do, whose rules replaced the recipe's weights as a whole."""
    full = Quantization(granularity="channel").model_dump()
    found = decided(Quantize(weights=GPTQ, rules=[{"layer": "a", "weights": full, "activations": None}]))
    assert found.weights == Quantization(granularity="channel")
    assert found.named == {"weights"}


def test_keep_and_changes_displace_each_other():
    tensor = Rule(layer="*", weights=Quantization(granularity="tensor"))
    kept = Rule(layer="a", keep="fp16")
    found = decided(Quantize(rules=(tensor, kept)))
    assert (found.keep, found.spec, found.named) == ("fp16", None, {"keep"})
    assert found.reason == "kept by the rule (layer: a)"
    assert found.weights == Quantization(), "what came before is not half forgotten"
    back = decided(Quantize(rules=(tensor, kept, Rule(op="linear", activations=Quantization(format="int16")))))
    assert (back.keep, back.weights.granularity, back.activations.format) == (None, "auto", "int16")
    assert back.activations.range == "mse", "inherited"
    assert decided(Quantize(rules=(kept,)), "b").named == frozenset()


def test_sparsity_is_the_layers_own():
    step = Quantize(
        weights=Quantization(format="fp32"),
        sparsity="2:4",
        rules=(
            Rule(layer="a", sparsity="50% per row"),
            Rule(layer="b", sparsity=None),
            Rule(layer="c", pruner="wanda"),
        ),
    )
    found = {name: decided(step, name) for name in "abcd"}
    assert [str(f.sparsity) for f in found.values()] == ["50% per row", "None", "2:4", "2:4"]
    assert [f.pruner for f in found.values()] == ["sparsegpt", "sparsegpt", "wanda", "sparsegpt"]
    assert found["b"].reason == "stays float: the recipe asks for it"
    assert found["c"].reason == "2:4 zeros, wanda, the rest float"


def test_zeros_and_codes_at_once_are_one_sweep():
    joint = Quantize(weights=GPTQ, rules=(Rule(layer="a", sparsity="2:4"), Rule(layer="b", weights={"solver": "rtn"})))
    assert decided(joint).reason == "2:4 zeros, sparsegpt, int4 per group:32 symmetric, gptq"
    with pytest.raises(RecipeError, match=r"b: sparse and quantized at once .* not sparsegpt and rtn"):
        decided(joint.model_copy(update={"sparsity": "2:4"}), "b")
    alone = decided(Quantize(sparsity="2:4"))
    assert (alone.spec, str(alone.sparsity)) == (None, "2:4"), "zeros alone ask for no format"


def test_merged_options_are_validated_together():
    rules = Rule(layer="a", weights={"solver": "gptq"}), Rule(op="linear", weights={"rounding": "stochastic"})
    step = Quantize(rules=rules)
    assert decided(step, "b").weights.rounding == "stochastic"
    with pytest.raises(RecipeError, match=r"^a: .*gptq.* by the rule \(layer: a\) and the rule \(op: linear\)"):
        decided(step)
    unchecked = step.model_copy(update={"weights": Quantization(range="kl"), "rules": ()})
    with pytest.raises(RecipeError, match=r"^a: weights\.range is 'kl'"):
        decided(unchecked)


def test_what_does_not_fit_stops_or_stays_float():
    def fits(spec, sparsity):
        raise CheckpointError("layer a.weight: 12 inputs; take group:4")

    with pytest.raises(RecipeError, match="12 inputs; take group:4; or let such layers stay float"):
        decided(Quantize(), fits=fits)
    found = decided(Quantize(fallback="float"), fits=fits)
    assert (found.spec, found.reason) == (None, "stays float by `fallback: float`: 12 inputs")
    assert decided(Quantize(), fits=lambda spec, _: spec.with_(scale_dtype="float16")).spec.scale_dtype == "float16"


def test_opting_in_takes_a_rule_that_names_it():
    step = Quantize(weights=GPTQ, rules=(Rule(layer="a", weights={}), Rule(layer="b", activations={"range": "kl"})))
    assert decided(step, "a", opt_in=True).spec == GPTQ.spec(INT8)
    assert decided(step, "b", opt_in=True).spec is None
    rules = Rule(layer="a", sparsity="50%"), Rule(layer="b", weights={"format": "int4"})
    zeros = Quantize(sparsity="2:4", rules=rules)
    assert str(decided(zeros, "a", opt_in=True).sparsity) == "50%"
    assert (b := decided(zeros, "b", opt_in=True)).sparsity is None
    assert b.spec == QuantSpec("int4", "channel")


def test_what_has_no_weight_has_no_spec():
    assert decide("softmax", "softmax", Quantize(), None).spec is None


def test_rules_that_match_nothing_name_the_nearest():
    layers = [("stem", "conv2d"), ("head", "linear")]
    step = Quantize(rules=(Rule(layer="@first", keep="fp32"), Rule(op="lin*", keep="fp16")))
    assert [r.layer for r in with_names(step, layers, ["stem", "head"]).rules] == ["stem", None]
    with pytest.raises(RecipeError, match=r"rule \(layer: haed\) matches no layer .*; nearest names: head"):
        with_names(Quantize(rules=(Rule(layer="haed", keep="fp32"),)), layers, ["stem", "head"])


def test_rules_that_name_different_things_differ():
    """``auto`` said is not ``auto`` left unsaid."""
    said, unsaid = (Rule(layer="a", weights=Quantization(**w)) for w in ({"format": "auto"}, {}))
    assert said != unsaid
    assert said == Rule(layer="a", weights=Quantization(format="auto"))
    assert Rule(layer="a", weights={}, sparsity=None) != unsaid
    assert len({said, unsaid, Rule(layer="a", weights=Quantization())}) == 2
