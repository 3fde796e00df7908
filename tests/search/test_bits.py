"""Bits for every weight of a language model: the mean is kept, and what costs most gets more."""

import pytest
import torch
import transformers
from typer.testing import CliRunner

import tersor
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.cli import app
from tersor.errors import RecipeError, TaskError
from tersor.numerics import FORMATS
from tersor.recipe import Quantization, Recipe
from tersor.search.bits import WeightCost, bit_costs, mixed_bits, optimize_folder
from tests.pipeline.tiny_folders import LM

TOKENS = torch.randint(3, 47, (16, 24), generator=torch.Generator().manual_seed(1))
HELD = torch.randint(3, 47, (6, 24), generator=torch.Generator().manual_seed(2))


def recipe(bits="int4"):
    weights = Quantization(format=bits, granularity="group:16", symmetric=False)
    return Recipe(name="w", weights=weights, activations=Quantization(format="fp32"), bias_correction=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Llama of random weights, of which one is larger than the others."""
    path = tmp_path_factory.mktemp("bits") / "llama"
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LM, initializer_range=0.1))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(8)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def costs(source):
    return bit_costs(source, recipe(), TOKENS, samples=4, progress=False)


def test_each_weight_alone_is_rounded_and_put_back(source, costs):
    assert len(costs) == 14
    for cost in costs:
        assert list(cost.losses) == ["int2", "int3", "int4", "int8"]
        assert cost.losses["int2"] > cost.losses["int3"] > cost.losses["int4"] > cost.losses["int8"] >= 0
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    weight = model.model.layers[0].self_attn.q_proj.weight
    ids = TOKENS[:4]
    with torch.no_grad():
        before = model(ids).logits.double().log_softmax(-1)
        spec = tersor.QuantSpec("int2", "group:16", symmetric=False)
        weight.copy_(tersor.numerics.quantize_tensor(weight, spec).dequantize())
        after = model(ids).logits.double().log_softmax(-1)
    want = float((before.exp() * (before - after)).sum()) / ids.numel()
    assert costs[0].name == "model.layers.0.self_attn.q_proj"
    assert costs[0].losses["int2"] == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize("bits", [2.0, 2.5, 3.0, 3.7, 8.0, 20.0])
def test_the_mean_is_kept(costs, bits):
    found = mixed_bits(costs, recipe(), bits)
    chosen = [FORMATS[rule.weights.format].bits for rule in found.quantize.rules]
    total = sum(c.elements for c in costs)
    mean = sum(b * c.elements for b, c in zip(chosen, costs, strict=True)) / total
    assert mean <= bits + 1e-9
    assert mean > min(bits, 8.0) - 0.5


def test_too_few_bits_and_other_formats_are_refused(source, costs):
    with pytest.raises(RecipeError, match="ask for 2 or more"):
        mixed_bits(costs, recipe(), 1.5)
    with pytest.raises(RecipeError, match="none of integers"):
        bit_costs(source, recipe(), TOKENS, formats=["ternary"], progress=False)
    with pytest.raises(TaskError, match="--data"):
        bit_costs(source, recipe(), None, progress=False)


def test_a_name_with_signs_of_patterns_is_taken_by_its_letters():
    odd = [WeightCost("a[0]*", 8, {"int2": 1.0, "int4": 0.0}), WeightCost("a0", 8, {"int2": 0.1, "int4": 0.0})]
    one, two = mixed_bits(odd, recipe(), 3.0).quantize.rules
    assert (one.layer, one.weights.format, two.weights.format) == ("a[[]0][*]", "int4", "int2")


def test_mixed_bits_lose_less_than_uniform_ones(source, tmp_path):
    lost = {}
    for bits in ("int2", "int4"):
        done = tersor.compress_folder(source, tmp_path / bits, recipe(bits), TOKENS, evaluate=HELD, progress=False)
        lost[bits] = done.report.divergence.nats
    out = tmp_path / "mixed"
    done = optimize_folder(source, out, 3.0, recipe(), TOKENS, evaluate=HELD, rated=4, progress=False)
    assert done.report.divergence.nats < (lost["int2"] + lost["int4"]) / 2
    assert len(QuantizedFolder(out).quantized) == 14
    formats = {w.name: w.format for w in done.report.weights if w.format}
    assert len(set(formats.values())) > 1
    assert tersor.load(out).model is not None


def test_the_command_line_asks_for_bits(source, tmp_path):
    text = tmp_path / "none.txt"
    text.write_text("a")
    found = CliRunner().invoke(app, ["optimize", str(source), "-o", str(tmp_path / "o"), "--data", str(text)])
    assert found.exit_code != 0
    assert "--bits" in str(found.exception)
    wrong = CliRunner().invoke(app, ["optimize", str(source), "-o", str(tmp_path / "o"), "--max-drop", "1"])
    assert "--max-drop is an option for tasks" in str(wrong.exception)


def test_a_model_that_does_not_fit_into_memory_is_refused(source, monkeypatch):
    monkeypatch.setattr("tersor.search.bits.free_bytes", lambda device: 1000)
    with pytest.raises(TaskError, match=r"takes .* kB, and 1.00 kB are free"):
        bit_costs(source, recipe(), TOKENS, progress=False)
