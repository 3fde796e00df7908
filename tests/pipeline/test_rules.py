"""A rule means the same in every host: inherited, kept, sparse, or refused by name."""

import pytest
import torch
import transformers
from parts import task_of
from safetensors.torch import load_file
from torch import nn

import tersor
from tersor.checkpoints.hf_folder import HfFolder
from tersor.errors import RecipeError
from tersor.pipeline.folder.job import prepare_job
from tersor.pipeline.modules.eager import prunable
from tersor.recipe import Quantization, Recipe, Rule

FLOAT = Quantization(format="fp32")
INT4 = Quantization(format="int4", granularity="group:16", range="mse")
LLAMA = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 48, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def write(dtype=torch.float32):
        path = tmp_path_factory.getbasetemp() / f"rules-{str(dtype)[6:]}"
        if not path.exists():
            torch.manual_seed(0)
            transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).to(dtype).save_pretrained(path)
        return path

    return write


@pytest.fixture
def tokens():
    return torch.randint(3, 48, (8, 16), generator=torch.Generator().manual_seed(1))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


def planned(recipe):
    """Of every layer with weights in the graph host: (format of the weight, what it is computed in, reason)."""
    done = tersor.compress(task_of(net(), (32,)), recipe, "torch", report=False, progress=False)
    return {p.name: (p.weight_format, p.planned, p.reason) for p in done.plan.layers if p.weight_format}, done


def plans(path, recipe, data=None):
    return {p.name.split(".", 2)[-1]: p for p in prepare_job(path, recipe, data).plans}


def test_rules_inherit_in_the_graph_host():
    rule = Rule(layer="2", weights=Quantization(granularity="tensor"))
    _, done = planned(Recipe(weights=INT4, activations=FLOAT, bias_correction=False, equalize="off", rules=(rule,)))
    first, second = done.plan.weights()
    assert (str(first.spec), first.range) == ("int4 per group:16 symmetric", "mse")
    assert (str(second.spec), second.range) == ("int4 per tensor symmetric", "mse")
    wide = Rule(layer="2", activations=Quantization(format="int16"))
    _, done = planned(Recipe(activations=Quantization(range="kl"), bias_correction=False, rules=(wide,)))
    assert {(s.spec.format.name, s.range) for s in done.plan.activations() if s.spec.format.bits == 16} == {
        ("int16", "kl")
    }


def test_a_rule_on_the_operator_that_makes_a_value_holds_where_its_readers_say_nothing():
    rule = Rule(op="relu", activations=Quantization(format="int16"))
    _, done = planned(Recipe(bias_correction=False, rules=(rule,)))
    assert {s.name: s.spec.format.name for s in done.plan.activations()} == {"input": "uint8", "1.relu": "int16"}


def test_rules_inherit_in_the_module_host():
    rule = Rule(layer="2", weights=Quantization(granularity="tensor"))
    plan = tersor.dynamic_plan(net(), Recipe(weights=INT4, activations=FLOAT, rules=(rule,)))
    assert [str(p.weights.spec(tersor.numerics.QuantSpec("int8"))) for p in plan] == [
        "int4 per group:16 symmetric",
        "int4 per tensor symmetric",
    ]
    wide = Rule(layer="2", activations=Quantization(format="int16"))
    plan = tersor.dynamic_plan(net(), tersor.recipe.int8_dynamic().model_copy(update={"rules": (wide,)}))
    assert [p.activation.format.name for p in plan] == ["int8", "int16"], "at run time, as the recipe says"


@pytest.mark.parametrize("keep", ["fp32", "fp16", "bf16"])
def test_keep_in_the_graph_host_and_in_the_module_host(keep):
    recipe = tersor.recipe.int8_weight().model_copy(update={"rules": (Rule(layer="2", keep=keep),)})
    found, _ = planned(recipe)
    assert found["2"] == (keep, keep, "kept by the rule (layer: 2)")
    assert found["0"][0] == "int8"
    model, kept = net(), tersor.quantize_dynamic(net(), recipe)[2]
    if keep == "fp32":
        assert torch.equal(kept.weight, model[2].weight)
        return
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[keep]
    assert kept.qweight.spec.format.name == keep
    assert torch.equal(kept.qweight.dequantize(), model[2].weight.to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep", ["fp32", "fp16", "bf16"])
def test_keep_in_the_folder_host_leaves_every_bit_or_is_refused(keep, dtype, folder, tmp_path):
    own = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    recipe = tersor.recipe.int8_weight().model_copy(update={"rules": (Rule(layer="*.down_proj", keep=keep),)})
    if keep not in ("fp32", own):
        said = rf"down_proj: the folder stores it in {own} .* in {keep} \(kept by the rule .*`keep: fp32` leaves it"
        with pytest.raises(RecipeError, match=said):
            prepare_job(folder(dtype), recipe, None)
        return
    report = tersor.compress_folder(folder(dtype), tmp_path / "out", recipe, progress=False)
    name = "model.layers.0.mlp.down_proj"
    before = load_file(folder(dtype) / "model.safetensors")[f"{name}.weight"]
    after = HfFolder(tmp_path / "out").tensor(f"{name}.weight")
    assert after.dtype == dtype
    assert torch.equal(before, after)
    assert next(w.note for w in report.weights if w.name == name).startswith(f"stays {own}: kept by the rule")


def test_sparsity_is_given_by_rules(folder, tokens, tmp_path):
    rules = (
        Rule(layer="*.mlp.*", sparsity="2:4", pruner="wanda"),
        Rule(layer="*.up_proj", sparsity=None, weights=Quantization(format="int8")),
        Rule(layer="*.o_proj", sparsity="75% per row"),
        Rule(layer="lm_head", sparsity="50%"),
    )
    recipe = Recipe(name="zeros", weights=FLOAT, activations=FLOAT, bias_correction=False, rules=rules)
    tersor.compress_folder(folder(), tmp_path / "out", recipe, tokens, progress=False)
    result = HfFolder(tmp_path / "out")

    def zeros(name):
        return float((result.tensor(f"{name}.weight") == 0).float().mean())

    block = "model.layers.0."
    assert zeros(f"{block}mlp.gate_proj") == zeros(f"{block}mlp.down_proj") == 0.5
    groups = result.tensor(f"{block}mlp.gate_proj.weight").reshape(64, 8, 4)
    assert ((groups == 0).sum(-1) == 2).all()
    assert zeros(f"{block}self_attn.o_proj") == 0.75
    assert zeros("lm_head") == 0.5, "the head takes part where a rule says so"
    assert zeros(f"{block}self_attn.q_proj") == 0
    found = plans(folder(), recipe, tokens)
    assert str(found["0.mlp.up_proj"].spec) == "int8 per channel symmetric"
    assert [found[f"0.mlp.{n}_proj"].pruner for n in ("gate", "up")] == ["wanda", "wanda"]
    assert found["0.self_attn.o_proj"].pruner == "sparsegpt"


def test_sparsity_of_the_recipe_leaves_the_head_alone(folder, tokens):
    found = plans(folder(), "sparse-2:4", tokens)
    assert not next(p for p in found.values() if p.tail).touched
    assert sum(p.touched for p in found.values()) == 7


def test_the_head_takes_what_rules_name_and_no_more(folder, tokens):
    weights = Quantization(format="int4", granularity="channel", range="mse", solver="gptq")
    recipe = Recipe(weights=weights, activations=FLOAT, sparsity="2:4", bias_correction=False)

    def head(**options):
        changed = recipe.model_copy(update={"rules": (Rule(layer="lm_head", **options),)})
        plan = next(p for p in plans(folder(), changed, tokens).values() if p.tail)
        return plan.spec and str(plan.spec), plan.sparsity and str(plan.sparsity)

    assert head(sparsity="50%") == (None, "50%")
    assert head(weights={"format": "int8"}) == ("int8 per channel symmetric", None)
    assert head(weights={}, sparsity="2:4") == ("int4 per channel symmetric", "2:4")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule(layer="2", sparsity="50%"), r"`sparsity: 50%` of the rule \(layer: 2\)"),
        (Rule(layer="2", pruner="wanda"), r"`pruner: wanda` of the rule \(layer: 2\)"),
    ],
)
def test_what_rules_ask_of_another_host_is_refused(rule, said):
    recipe = tersor.recipe.int8_weight().model_copy(update={"rules": (rule,)})
    with pytest.raises(RecipeError, match=f"{said} .* is for folders"):
        planned(recipe)
    with pytest.raises(RecipeError, match=f"{said} .* is for folders"):
        tersor.dynamic_plan(net(), recipe)


def test_a_format_in_half_precision_keeps_the_layer():
    """Weights in half precision under float activations are stored so, by the recipe or by a rule."""
    rule = Rule(layer="2", weights=Quantization(format="bf16"))
    found, _ = planned(tersor.recipe.int8_weight().model_copy(update={"rules": (rule,)}))
    assert found["2"] == ("bf16", "fp32", "the recipe asks for bf16: stored in bf16, computed in float")


def test_a_skipped_layer_is_a_kept_one():
    layers, left = prunable(net(), ["[1-9]"])
    assert ([layer.name for layer in layers], left) == (["0"], {"2": "skipped"})
