"""What a folder holds counts: tied weights with values of their own, adapters, experts, small scales, every matrix."""

import json

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import tersor
from tersor import Quantization, Recipe, Rule
from tersor.checkpoints.hf_folder import HfFolder
from tersor.cli import app
from tersor.cli.common import console
from tersor.errors import CalibrationError, CheckpointError, RecipeError
from tersor.network.blocks.chain import find_blocks, parameters_on_meta
from tersor.pipeline.folder.job import prepare_job
from tersor.pipeline.folder.text import positions
from tests.pipeline.tiny_folders import EXPERTS, LM, MODELS, TOKENS, distance, said, written

FLOAT = Quantization(format="fp32")


def recipe(*rules, **weights):
    weights = Quantization(**{"format": "int8", "granularity": "channel"} | weights)
    return Recipe(name="own", weights=weights, rules=rules, activations=FLOAT, bias_correction=False)


def changed(path, change, **edits):
    """A folder whose tensors ``change`` has changed."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text()) | edits
    (path / "config.json").write_text(json.dumps(config))
    return path


def tied(path):
    return written(path, MODELS["llama"](tie_word_embeddings=True))


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
STORED = {
    "one": lambda w: None,
    "the head alone": lambda w: w.update({HEAD: w.pop(EMBEDDING)}),
    "twice the same": lambda w: w.update({HEAD: w[EMBEDDING].clone()}),
    "two": lambda w: w.update({HEAD: w[EMBEDDING].flip(0) / 8}),
}


@pytest.mark.parametrize("stored", STORED)
def test_a_tie_of_the_config_holds_where_the_folder_has_one_value(stored, tmp_path):
    source = changed(tied(tmp_path / "source"), STORED[stored])
    report = tersor.compress_folder(source, tmp_path / "out", "int8-weight", progress=False).report
    wanted = said(t.LlamaForCausalLM.from_pretrained(source))
    found = said(tersor.load(tmp_path / "out").model)
    assert distance(found, wanted) <= 0.1
    assert distance(said(t.LlamaForCausalLM.from_pretrained(tmp_path / "out")), found) <= 1e-5
    before, after = HfFolder(source), HfFolder(tmp_path / "out")
    for name in {EMBEDDING, HEAD} & set(before.entries):
        assert torch.equal(before.tensor(name), after.tensor(name))
    assert any("ties lm_head.weight" in w for w in report.warnings) == (stored == "two")
    assert after.config["tie_word_embeddings"] == (stored != "two")


def test_a_head_of_its_own_can_be_quantized_though_the_config_ties_it(tmp_path):
    source = changed(tied(tmp_path / "source"), STORED["two"])
    head = Rule(layer="lm_head", weights={"format": "int8"})
    tersor.compress_folder(source, tmp_path / "out", recipe(head), progress=False)
    found = said(tersor.load(tmp_path / "out").model)
    assert distance(found, said(t.LlamaForCausalLM.from_pretrained(source))) <= 0.1
    assert distance(said(t.LlamaForCausalLM.from_pretrained(tmp_path / "out")), found) <= 1e-5


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_is_to_be_merged_first(name, tmp_path):
    source = written(tmp_path / "source", MODELS["llama"]())
    (source / name).write_bytes(b"{}")
    for use in (lambda: prepare_job(source, "int8-weight", None), lambda: tersor.load(source)):
        with pytest.raises(CheckpointError, match=rf"holds an adapter \({name}\).*merge it"):
            use()


@pytest.mark.parametrize(
    "edits", [{"quantization_config": None}, {"torch_dtype": "auto"}, {"dtype": "auto"}], ids=lambda e: next(iter(e))
)
def test_values_of_the_config_that_say_nothing_are_left_out(edits, tmp_path):
    source = written(tmp_path / "source", MODELS["llama"](), **edits)
    wanted = said(tersor.load(source).model)
    tersor.compress_folder(source, tmp_path / "out", "int8-weight", progress=False)
    assert distance(said(tersor.load(tmp_path / "out").model), wanted) <= 0.1


def test_dynamic_positions_take_longer_windows():
    assert positions({"max_position_embeddings": 64}) == 64
    assert positions({"max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 2.0}}) == 128
    assert positions({"max_position_embeddings": 64, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}) == 64
    assert positions({"text_config": {"max_position_embeddings": 32}}) == 32


@pytest.mark.parametrize("kind", ["longrope", "dynamic", "yarn"])
def test_scaled_positions_are_calibrated(kind, tmp_path):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 8}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0} | (factors if kind == "longrope" else {})
    source = written(tmp_path / "source", MODELS["llama"](), rope_parameters=rope)
    tersor.compress_folder(source, tmp_path / "out", recipe(solver="gptq"), TOKENS, progress=False)
    wanted = said(t.LlamaForCausalLM.from_pretrained(source))
    assert distance(said(tersor.load(tmp_path / "out").model), wanted) <= 0.1


def mixture(path):
    return written(path, t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**LM, **EXPERTS, head_dim=8, moe_intermediate_size=16)))


DIFFERING = {
    "one expert in float": Rule(layer="*layers.1.mlp.experts.2.up_proj", keep="fp32"),
    "one expert in four bits": Rule(layer="*.experts.0.*", weights={"format": "int4"}),
    "one layer in float": Rule(layer="*layers.0.mlp.experts.*", keep="fp32"),
    "one projection in four bits": Rule(layer="*.down_proj", weights={"format": "int4"}),
    "all in float": Rule(layer="*.experts.*", keep="fp32"),
}


@pytest.mark.parametrize("kind", DIFFERING)
def test_experts_that_transformers_fuses_are_quantized_alike_or_refused(kind, tmp_path):
    with pytest.raises(RecipeError, match=r"experts\.\d+\.\w+.*transformers"):
        prepare_job(mixture(tmp_path / "source"), recipe(DIFFERING[kind]), None)


@pytest.mark.parametrize("rule", ["*.experts.*", "*.self_attn.*"])
def test_experts_of_another_format_than_the_rest_are_read_as_they_are(rule, tmp_path):
    source = mixture(tmp_path / "source")
    four = Rule(layer=rule, weights={"format": "int4", "granularity": "group:16"})
    tersor.compress_folder(source, tmp_path / "out", recipe(four), progress=False)
    found = said(tersor.load(tmp_path / "out").model)
    assert distance(said(t.Qwen3MoeForCausalLM.from_pretrained(tmp_path / "out")), found) <= 1e-5


def test_experts_that_no_token_reaches_are_rounded_and_named(tmp_path):
    source = mixture(tmp_path / "source")
    kind = recipe(format="int4", solver="gptq")
    report = tersor.compress_folder(source, tmp_path / "out", kind, TOKENS[:1, :2], progress=False).report
    rounded = [w for w in report.weights if w.format and w.note]
    assert rounded
    assert all(".experts." in w.name and w.method.startswith("rtn") and w.tokens == 0 for w in rounded)
    warning = next(w for w in report.warnings if "no token" in w)
    assert rounded[0].name in warning
    assert warning.startswith(f"{len(rounded)} weights")
    assert "rounded to nearest: no token" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(("size", "bits"), [(5e-4, "int8"), (2e-4, "int4")])
def test_scales_that_half_precision_cannot_hold_are_refused_by_name(size, bits, tmp_path):
    def shrink(tensors):
        tensors.update({n: x.half() for n, x in tensors.items()})
        tensors["model.layers.1.mlp.up_proj.weight"] *= size

    source = changed(written(tmp_path / "source", MODELS["llama"]()), shrink, dtype="float16")
    with pytest.raises(CalibrationError, match=r"layers.1.mlp.up_proj: .* scales below 6.1e-05.*bfloat16"):
        tersor.compress_folder(source, tmp_path / "out", recipe(format=bits), progress=False)
    kept = recipe(format=bits).model_copy(update={"fallback": "float"})
    report = tersor.compress_folder(source, tmp_path / "out", kept, force=True, progress=False).report
    assert [w.name for w in report.weights if w.note and "scales below" in w.note] == ["model.layers.1.mlp.up_proj"]


def test_a_rule_that_compresses_what_is_left_is_refused_with_the_reason(tmp_path):
    source = written(tmp_path / "source", MODELS["llama"]())
    with pytest.raises(RecipeError, match=r"matches model.embed_tokens, which stays float: rows of an embedding"):
        prepare_job(source, recipe(Rule(layer="*embed_tokens", weights={"format": "int4"})), None)
    prepare_job(source, recipe(Rule(layer="*embed_tokens", keep="fp32")), None)


def test_the_plan_of_a_folder_names_every_matrix(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "_width", 250)
    source = changed(
        written(tmp_path / "source", MODELS["granite_moe"]()), lambda w: w.update(stray=torch.zeros(3, 4))
    )  # fmt: skip
    done = CliRunner().invoke(app, ["inspect", str(source), "--recipe", "int8-weight"])
    assert done.exit_code == 0, done.output
    assert "the experts are one tensor of 4 x 128 x 32" in done.output
    assert "GraniteMoeForCausalLM has no place for it" in done.output
    for name, entry in HfFolder(source).entries.items():
        assert (name.removesuffix(".weight") in done.output) == (len(entry.shape) > 1)


class Stacked(nn.Module):
    """A tower, longer than the layers that tokens pass."""

    def __init__(self):
        super().__init__()
        self.tower = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))
        self.embed = nn.Embedding(12, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, input_ids, pixels=None):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x if pixels is None else x + self.tower[0](pixels)


def test_blocks_are_those_that_tokens_reach():
    with parameters_on_meta():
        model = Stacked()
    assert find_blocks(model).path == "layers"
    assert model.embed.weight.is_meta


def test_layers_of_two_kinds_are_blocks_where_no_others_are_reached():
    with parameters_on_meta():
        model = Stacked()
        model.layers[1] = nn.Sequential(nn.Linear(8, 8))
    assert find_blocks(model).path == "layers"
