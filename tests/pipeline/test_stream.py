"""Language models streamed block by block: the codes as by hand, taken up after a kill, and what may go wrong."""

import hashlib
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import tersor
from tersor.checkpoints.hf_folder import HfFolder
from tersor.checkpoints.layouts import LAYOUTS
from tersor.checkpoints.quantized_folder import QuantizedFolder
from tersor.errors import (
    CalibrationError,
    CaptureError,
    CheckpointError,
    MetricError,
    RecipeError,
    SavedFolderError,
    TaskError,
)
from tersor.measure.windows import Tokens
from tersor.network.blocks.chain import find_blocks
from tersor.numerics import QuantSpec
from tersor.observers.gram import Gram
from tersor.pipeline.folder.job import prepare_job
from tersor.pipeline.folder.journal import Journal
from tersor.pipeline.folder.text import tokenizer_of
from tersor.pipeline.progress import Stage
from tersor.recipe import Quantization, Recipe, Rule
from tersor.solvers import Gptq, LayerProblem, Rtn

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 48, "n_positions": 64}
OPT = {
    "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 48,
    "word_embed_proj_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip
BERT = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **IDS)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, **IDS, head_dim=8)),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**SMALL, **IDS, head_dim=8)),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SMALL, **IDS, num_local_experts=4, num_experts_per_tok=2)
    ),
    "opt": lambda: transformers.OPTForCausalLM(transformers.OPTConfig(**OPT, **IDS)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, **IDS)),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**BERT, pad_token_id=0)),
}
OTHERS = [k for k in MODELS if k not in ("llama", "gpt2")]
FLOAT = Quantization(format="fp32")


def recipe(solver="gptq", **kinds):
    weights = Quantization(**{"format": "int4", "granularity": "channel", "range": "mse", "solver": solver} | kinds)
    return Recipe(name=f"test-{solver}", weights=weights, activations=FLOAT, bias_correction=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def write(kind, dtype=torch.float32):
        path = tmp_path_factory.getbasetemp() / f"{kind}-{str(dtype)[6:]}"
        if not path.exists():
            torch.manual_seed(0)
            MODELS[kind]().to(dtype).save_pretrained(path)
        return path

    return write


@pytest.fixture
def tokens():
    return torch.randint(3, 48, (12, 16), generator=torch.Generator().manual_seed(1))


def float_model(kind, path):
    return type(MODELS[kind]()).from_pretrained(path, attn_implementation="sdpa").eval()


# Whose output is added to what this norm reads.
ADDED = {"self_attn.o_proj": "input_layernorm", "mlp.down_proj": "post_attention_layernorm"}


@torch.no_grad()
def reads(model, name, tokens):
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(tokens)
    hook.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


def digests(path):
    skipped = {"report.json", "report.html", "manifest.json"}
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir() if p.name not in skipped}


def test_rounding_to_nearest_needs_no_data_and_gives_the_solvers_codes(folder, tmp_path):
    source = folder("llama")
    report = tersor.compress_folder(source, tmp_path / "out", recipe("rtn"), progress=False)
    found, weights = QuantizedFolder(tmp_path / "out"), load_file(source / "model.safetensors")
    assert len(found.quantized) == 14 == sum(w.format is not None for w in report.weights)
    for name in found.quantized:
        expected = Rtn("mse")(LayerProblem(name, weights[name], QuantSpec("int4", "channel"))).qtensor
        assert torch.equal(found.qtensor(name).codes, expected.codes)
    kept = load_file(next((tmp_path / "out").glob("model-00001*")))
    assert torch.equal(kept["model.embed_tokens.weight"], weights["model.embed_tokens.weight"])


@pytest.mark.slow
def test_gptq_sees_the_inputs_behind_what_is_quantized_already(folder, tokens, tmp_path):
    source = folder("llama")
    tersor.compress_folder(source, tmp_path / "out", recipe(), tokens, progress=False)
    found = QuantizedFolder(tmp_path / "out")
    model, original = float_model("llama", source), float_model("llama", source)
    # The reference: the float model with everything in front of the layer exchanged for its codes.
    order = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
             "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
    for layer in (0, 1):
        for part in order:
            name = f"model.layers.{layer}.{part}"
            module = model.get_submodule(name)
            x, before = (reads(one, name, tokens) for one in (model, original))
            weight = module.weight.detach()
            lost = (before - x) @ weight.t()
            if part in ADDED:  # what it is added to lacks something too, and a norm behind divides by the sum's size
                norm = f"model.layers.{layer}.{ADDED[part]}"
                stream, its = (reads(one, norm, tokens) for one in (model, original))
                size = (stream + x @ weight.t()).square().mean(1, keepdim=True).sqrt()
                x, lost = x / size, (lost + its - stream) / size
            gram = Gram.of(x[None]).hessian
            cross = 2 * lost.t() @ x / len(x)
            spec = QuantSpec("int4", "channel")
            solved = Gptq("mse")(LayerProblem(name, weight, spec, gram=gram, cross=cross)).qtensor
            # Sums in another order may turn a tie.
            assert (solved.codes != found.qtensor(f"{name}.weight").codes).float().mean() < 0.01
            if not part.startswith("self_attn.q") and part != "mlp.gate_proj":
                module.weight.data = found.qtensor(f"{name}.weight").dequantize()
            if part in ("self_attn.v_proj", "mlp.up_proj"):
                first = name.replace("v_proj", "q_proj").replace("up_proj", "gate_proj")
                model.get_submodule(first).weight.data = found.qtensor(f"{first}.weight").dequantize()


@pytest.mark.parametrize("kind", ["llama", "gpt2", *(pytest.param(k, marks=pytest.mark.slow) for k in OTHERS)])
def test_every_architecture_is_streamed_and_runs_as_its_codes_say(kind, folder, tokens, tmp_path):
    source = folder(kind)
    report = tersor.compress_folder(source, tmp_path / "out", recipe(), tokens, progress=False)
    solved = [w for w in report.weights if w.format]
    assert len(solved) >= 8
    assert all(w.tokens > 0 and w.error is not None and w.method.startswith("gptq") for w in solved)
    assert sum(w.error for w in solved) < sum(w.rtn_error for w in solved)
    codes = QuantizedFolder(tmp_path / "out")
    plain = HfFolder(source)
    state = dict(codes.tensors(list(plain.entries)))
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "float").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "float" / path.name)
    save_file(state, tmp_path / "float" / "model.safetensors", {"format": "pt"})
    with torch.no_grad():
        expected = float_model(kind, tmp_path / "float")(tokens[:2])[0]
        found = tersor.load(tmp_path / "out")(tokens[:2])[0]
        original = float_model(kind, source)(tokens[:2])[0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, original, atol=1e-4)


def test_bfloat16_is_kept_and_its_scales_are_those_of_the_file(folder, tokens, tmp_path):
    report = tersor.compress_folder(
        folder("llama", torch.bfloat16), tmp_path / "out", recipe(granularity="group:16"), tokens, progress=False
    )
    found = QuantizedFolder(tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    assert found.entries[name].dtype == torch.bfloat16
    scale = found.qtensor(name).scale
    assert torch.equal(scale, scale.bfloat16().float())
    assert report.bits_per_weight == 4 + 16 / 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_biases_of_half_precision_run_behind_codes(dtype, folder, tmp_path):
    tersor.compress_folder(folder("opt", dtype), tmp_path / "out", recipe("rtn", format="int8"), progress=False)
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        found = tersor.load(tmp_path / "out")(ids).logits
        expected = float_model("opt", folder("opt", dtype))(ids).logits
    assert found.dtype == dtype
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_holds_the_same_codes(layout, folder, tokens, tmp_path):
    kind = recipe(granularity="group:16", symmetric=layout == "gptq")
    tersor.compress_folder(folder("llama"), tmp_path / "out", kind, tokens, layout=layout, progress=False)
    tersor.compress_folder(folder("llama"), tmp_path / "again", kind, tokens, layout=layout, progress=False)
    assert digests(tmp_path / "out") == digests(tmp_path / "again")
    model = tersor.load(tmp_path / "out")
    ids = torch.tensor([[1, 5, 9]])
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, 7)


def test_scores_are_those_of_the_two_models(folder, tokens, tmp_path):
    held = torch.randint(3, 48, (5, 16), generator=torch.Generator().manual_seed(2))
    report = tersor.compress_folder(
        folder("llama"), tmp_path / "out", recipe(), tokens, evaluate=held, progress=False
    )  # fmt: skip
    logs = []
    for score, model in (
        (report.original, float_model("llama", folder("llama"))), (report.compressed, tersor.load(tmp_path / "out"))
    ):  # fmt: skip
        with torch.no_grad():
            logs.append(model(held).logits[:, :-1].log_softmax(-1).flatten(0, 1))
        assert score.nats == pytest.approx(float(nn.functional.nll_loss(logs[-1], held[:, 1:].flatten())), abs=1e-5)
    far = nn.functional.kl_div(logs[1], logs[0], reduction="batchmean", log_target=True)
    assert report.divergence.nats == pytest.approx(float(far), rel=1e-3)
    assert f"{report.compressed.perplexity:.4g}" in report.headline()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", [3, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 4, 6))])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(where, folder, tokens, tmp_path, monkeypatch):
    from tersor.pipeline.folder import activations, blockwise

    arguments = (folder("llama"), tmp_path / "out", recipe(), tokens)
    tersor.compress_folder(folder("llama"), tmp_path / "whole", recipe(), tokens, evaluate=tokens[:2], progress=False)
    calls = 0

    def dying(function):
        def called(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == 5 * where:
                raise Killed
            return function(*args, **kwargs)

        return called

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", dying(Journal.write))
        patch.setattr(activations.Activations, "write", dying(activations.Activations.write))
        patch.setattr(blockwise, "solve_weight", dying(blockwise.solve_weight))
        try:
            tersor.compress_folder(*arguments, evaluate=tokens[:2], progress=False)
        except Killed:
            assert not (tmp_path / "out").exists()
            patch.undo()
            tersor.compress_folder(*arguments, evaluate=tokens[:2], progress=False)
        else:
            assert calls < 5 * where
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_a_second_run_into_a_folder_is_refused(folder, tokens, tmp_path, monkeypatch):
    found = []

    def second(*_):
        with pytest.raises(SavedFolderError, match="another run is writing"):
            tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), progress=False)
        found.append(True)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", second)
        with pytest.raises(Killed):
            tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), progress=False)
    assert found
    with pytest.raises(SavedFolderError, match=r"interrupted run of .* with different .*recipe"):
        tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn", format="int8"), progress=False)
    tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn", format="int8"), force=True, progress=False)
    with pytest.raises(SavedFolderError, match="exists"):
        tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), progress=False)


def copied(source, target):
    shutil.copytree(source, target)
    return target


def edited(path, **changes):
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_folders_that_are_incomplete_say_what_is_missing(folder, tmp_path):
    bad = copied(folder("llama"), tmp_path / "a")
    (bad / "model.safetensors").rename(bad / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds no weights: pytorch_model.bin is a pickle"):
        prepare_job(bad, "int4-weight", None)
    (bad / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        prepare_job(bad, "int4-weight", None)
    sharded = tmp_path / "b"
    float_model("llama", folder("llama")).save_pretrained(sharded, max_shard_size="20KB")
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 2
    files[1].unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of its {len(files)} shards .{files[1].name}"):
        prepare_job(sharded, "int4-weight", None)
    cut = copied(folder("llama"), tmp_path / "c") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read .* truncated"):
        prepare_job(cut.parent, "int4-weight", None)
    lacking = copied(folder("llama"), tmp_path / "d") / "model.safetensors"
    save_file({n: t for n, t in load_file(lacking).items() if "1.mlp.up" not in n}, lacking)
    with pytest.raises(CheckpointError, match=r"lacks 1 weights .*model.layers.1.mlp.up_proj.weight"):
        prepare_job(lacking.parent, "int4-weight", None)


def test_weights_beside_the_models_own_are_no_part_of_it(folder, tmp_path):
    source = copied(folder("llama"), tmp_path / "a")
    weights = load_file(source / "model.safetensors")
    save_file({f"original.{n}": t for n, t in weights.items()}, source / "consolidated.safetensors")
    report = tersor.compress_folder(source, tmp_path / "out", recipe("rtn"), progress=False)
    assert report.original_bytes == sum(t.nbytes for t in weights.values())
    assert set(QuantizedFolder(tmp_path / "out").entries) == set(weights)


def test_a_shape_that_contradicts_the_configuration_is_named(folder, tmp_path):
    bad = edited(copied(folder("llama"), tmp_path / "a"), intermediate_size=80)
    with pytest.raises(CheckpointError, match=r"model.layers.0.mlp.\w+.weight has shape \[.*64.*\] .*80"):
        prepare_job(bad, "int4-weight", None)


def test_an_unknown_architecture_is_built_by_the_caller(folder, tokens, tmp_path):
    bad = edited(copied(folder("llama"), tmp_path / "a"), model_type="llama9", architectures=["Llama9"])
    with pytest.raises(CaptureError, match=r"does not know the architecture 'llama9'.*build="):
        prepare_job(bad, "int4-weight", None)
    report = tersor.compress_folder(bad, tmp_path / "out", recipe(), tokens, build=MODELS["llama"], progress=False)
    assert report.architecture == "LlamaForCausalLM"
    own = edited(copied(folder("llama"), tmp_path / "b"), model_type="x", auto_map={"AutoConfig": "evil.Config"})
    with pytest.raises(CaptureError, match="contains Python code"):
        prepare_job(own, "int4-weight", None)


def test_discovery_says_what_it_did_not_find():
    with pytest.raises(CaptureError, match=r"no nn.ModuleList of modules of one class"):
        find_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    both = nn.ModuleDict({k: nn.ModuleList([nn.Linear(2, 2)] * 3) for k in ("encoder", "decoder")})
    with pytest.raises(CaptureError, match=r"two lists of 3 blocks, encoder and decoder"):
        find_blocks(both)
    experts = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2) for _ in range(9)]) for _ in range(3)])
    assert find_blocks(nn.ModuleDict({"layers": experts})).path == "layers"


def test_text_needs_a_tokenizer_and_enough_of_it(folder, tmp_path):
    with pytest.raises(CheckpointError, match="has no readable tokenizer"):
        prepare_job(folder("llama"), recipe(), "Once upon a time")
    with pytest.raises(RecipeError, match=r"q_proj: the solver of the recipe test-gptq asks for calibration text"):
        prepare_job(folder("llama"), recipe(), None)


def test_a_group_that_does_not_divide_stops_or_stays_float(folder, tmp_path):
    kind = recipe("rtn", granularity="group:24")
    with pytest.raises(RecipeError, match=r"q_proj.* 32 inputs, not a multiple of the group size 24.*fallback"):
        prepare_job(folder("llama"), kind, None)
    mixed = kind.model_copy(update={"rules": (Rule(layer="*.down_proj", weights=recipe("rtn").weights),)})
    found = prepare_job(folder("llama"), mixed.model_copy(update={"fallback": "float"}), None)
    assert [t.name.rsplit(".", 1)[1] for t in found.plans if t.spec] == ["down_proj", "down_proj"]
    assert any("12 layers stay float" in w for w in found.preflight.warnings)
    assert len({t.reason for t in found.plans if "fallback" in t.reason}) == 1, "alike but for the name"


@pytest.mark.parametrize(("value", "what"), [(float("inf"), "infinite"), (float("nan"), "NaN")])
def test_weights_that_are_not_finite_stop_the_run_and_are_named(value, what, folder, tokens, tmp_path):
    bad = copied(folder("llama"), tmp_path / "a") / "model.safetensors"
    weights = load_file(bad)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, bad, {"format": "pt"})
    with pytest.raises(CalibrationError, match=rf"layers.1.mlp.up_proj.* {what}"):
        tersor.compress_folder(bad.parent, tmp_path / "out", recipe("rtn"), progress=False)
    kind = recipe("rtn").model_copy(update={"fallback": "float"})
    report = tersor.compress_folder(bad.parent, tmp_path / "out", kind, force=True, progress=False)
    note = next(w.note for w in report.weights if w.name == "model.layers.1.mlp.up_proj")
    assert "stays float by `fallback: float`" in note


def test_infinite_activations_name_the_layer_and_dead_columns_do_not_hurt(folder, tokens, tmp_path):
    bad = copied(folder("llama"), tmp_path / "a") / "model.safetensors"
    weights = load_file(bad)
    weights["model.layers.0.input_layernorm.weight"][5] = 0.0
    weights["model.layers.1.post_attention_layernorm.weight"][3] = float("inf")
    save_file(weights, bad, {"format": "pt"})
    with pytest.raises(CalibrationError, match=r"layers.1.mlp.(gate|up)_proj.*(NaN|infinite)"):
        tersor.compress_folder(bad.parent, tmp_path / "out", recipe(), tokens, progress=False)
    weights["model.layers.1.post_attention_layernorm.weight"][3] = 1.0
    save_file(weights, bad, {"format": "pt"})
    tersor.compress_folder(bad.parent, tmp_path / "out", recipe(), tokens, force=True, progress=False)
    found = QuantizedFolder(tmp_path / "out").qtensor("model.layers.0.self_attn.q_proj.weight")
    assert (found.dequantize()[:, 5] == 0).all()


def test_a_full_disk_is_said_before_or_keeps_what_is_done(folder, tokens, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "tersor.pipeline.folder.preflight.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1)
        )
        with pytest.raises(CheckpointError, match=r"1 B free and .* kB are needed"):
            tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), progress=False)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", full)
        with pytest.raises(CheckpointError, match=r"disk of .* is full; what is done is kept"):
            tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("harm", ["altered", "cut", "missing"])
def test_a_folder_that_was_harmed_is_not_loaded(harm, folder, tmp_path):
    tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), progress=False)
    path = tmp_path / "out" / "model-00002-of-00003.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw if harm == "altered" else raw[:-40])
    if harm == "missing":
        path.unlink()
    with pytest.raises(SavedFolderError, match=r"model-00002-of-00003.safetensors"):
        tersor.load(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    if harm != "altered":
        with pytest.raises(CheckpointError, match=r"model-00002-of-00003.safetensors"):
            tersor.load(tmp_path / "out")


def test_the_head_is_quantized_where_a_rule_says_so(folder, tokens, tmp_path):
    rule = Rule(layer="lm_head", weights=Quantization(format="int8", granularity="channel", solver="gptq"))
    kind = recipe().model_copy(update={"rules": (rule,)})
    report = tersor.compress_folder(folder("llama"), tmp_path / "out", kind, tokens, progress=False)
    head = report.weights[-1]
    assert head.name == "lm_head"
    assert head.format.startswith("int8")
    assert head.tokens == tokens.numel()
    assert "lm_head.weight" in QuantizedFolder(tmp_path / "out").quantized


def test_activations_are_not_quantized_here(folder):
    with pytest.raises(RecipeError, match=r"int8-static quantizes activations.*int4-gptq"):
        prepare_job(folder("llama"), "int8-static", None)
    astray = recipe("rtn").model_copy(update={"rules": (Rule(layer="blocks.*", keep="fp32"),)})
    with pytest.raises(RecipeError, match=r"rule .*blocks.* matches no layer"):
        prepare_job(folder("llama"), astray, None)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"smooth": "on"}, "smooth: on"),
        ({"smooth_alpha": 0.5}, "smooth_alpha"),
        ({"equalize": "on"}, "equalize: on"),
    ],
)
def test_what_is_not_done_to_folders_is_refused(change, what, folder):
    with pytest.raises(RecipeError, match=f"`.*{what}.*` of the recipe test-rtn is not done to folders"):
        prepare_job(folder("llama"), recipe("rtn").model_copy(update=change), None)
    asking = {"rules": (Rule(layer="*.down_proj", activations=Quantization(format="int8")),)}
    said = r"down_proj: `activations` of the rule \(layer: \*\.down_proj\) is not done to folders"
    with pytest.raises(RecipeError, match=said):
        prepare_job(folder("llama"), recipe("rtn").model_copy(update=asking), None)
    silent = {"rules": (Rule(op="linear", activations=FLOAT),)}
    prepare_job(folder("llama"), recipe("rtn").model_copy(update=silent), None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mixtral"])
@pytest.mark.parametrize("change", [{"awq": True}, {"rotate": True}, {"awq": True, "rotate": True}])
def test_rewrites_leave_the_function_and_change_the_weights(change, kind, folder, tokens, tmp_path):
    # At 8 bits hardly anything is lost, so that the function is seen to be the same.
    wanted = recipe("gptq", format="int8").model_copy(update=change)
    source = folder(kind)
    report = tersor.compress_folder(source, tmp_path / "out", wanted, tokens, evaluate=tokens[:3], progress=False)
    assert report.divergence.nats < 1e-4
    found, weights = QuantizedFolder(tmp_path / "out"), HfFolder(source)
    name = "model.layers.0.self_attn.k_proj.weight"
    # More than rounding to 8 bits does.
    assert not torch.allclose(found.tensor(name), weights.tensor(name), rtol=0, atol=1e-3)
    with torch.no_grad():
        expected = float_model(kind, source)(tokens[:2]).logits
        logits = tersor.load(tmp_path / "out")(tokens[:2]).logits
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.slow
def test_awq_lowers_the_error_of_rounding(folder, tokens, tmp_path):
    plain = recipe("rtn", granularity="group:16", symmetric=False, range="minmax")
    errors = {}
    for name, wanted in (
        ("rtn", plain), ("awq", plain.model_copy(update={"awq": True})), ("clipped", recipe("rtn", range="awq")),
    ):  # fmt: skip
        report = tersor.compress_folder(
            folder("llama"), tmp_path / name, wanted, tokens, evaluate=tokens[:6], progress=False
        )
        errors[name] = report.divergence.nats
    assert errors["awq"] < errors["rtn"]
    assert any(w.error < w.rtn_error for w in report.weights if w.error is not None)


def test_a_rotation_of_layer_norms_is_refused(folder, tokens, tmp_path):
    with pytest.raises(tersor.TersorError, match="LayerNorm"):
        tersor.compress_folder(
            folder("gpt2"), tmp_path / "out", recipe().model_copy(update={"rotate": True}), tokens, progress=False
        )


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", ["50%", "2:4"])
@pytest.mark.parametrize("quantized", [False, True])
def test_weights_are_made_zero_alone_and_with_quantization(sparsity, quantized, folder, tokens, tmp_path):
    weights = recipe().weights if quantized else FLOAT
    wanted = Recipe(name="sparse", weights=weights, activations=FLOAT, sparsity=sparsity)
    report = tersor.compress_folder(folder("llama"), tmp_path / "out", wanted, tokens, progress=False)
    found = QuantizedFolder(tmp_path / "out") if quantized else HfFolder(tmp_path / "out")
    up = found.tensor("model.layers.1.mlp.up_proj.weight")
    zeros = (up == 0).float().mean()
    assert zeros >= 0.5
    assert zeros == 0.5 or quantized
    if sparsity == "2:4":
        assert ((up.reshape(-1, 4) != 0).sum(1) <= 2).all()
    assert all(f"{sparsity} zeros" in w.format for w in report.weights if w.format)
    ids = torch.tensor([[1, 5, 9]])
    assert tersor.load(tmp_path / "out").generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 5)


def test_better_pruners_lose_less(folder, tokens, tmp_path):
    errors = {}
    for pruner in ("magnitude", "sparsegpt", "exactobs"):
        wanted = Recipe(name=pruner, weights=FLOAT, activations=FLOAT, sparsity="50% per row", pruner=pruner)
        report = tersor.compress_folder(folder("llama"), tmp_path / pruner, wanted, tokens, progress=False)
        errors[pruner] = sum(w.error for w in report.weights if w.error is not None)
    assert errors["exactobs"] < errors["sparsegpt"] < errors["magnitude"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_padded_positions_do_not_count(kind, folder, tokens, tmp_path):
    short = tokens[:, :10]
    padded = torch.cat([short, torch.zeros(12, 6, dtype=torch.int64)], 1)
    mask = torch.arange(16).expand(12, -1) < 10
    reports = [
        tersor.compress_folder(folder(kind), tmp_path / "short", recipe(), short, progress=False),
        tersor.compress_folder(folder(kind), tmp_path / "padded", recipe(), padded, token_mask=mask, progress=False),
        tersor.compress_folder(folder(kind), tmp_path / "blind", recipe(), padded, progress=False),
    ]
    errors = [[w.error for w in r.weights if w.error is not None] for r in reports]
    assert [w.tokens for w in reports[1].weights if w.format] == [120] * len(errors[1])
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
    assert errors[2] != pytest.approx(errors[0], rel=1e-2)


def test_a_mask_of_another_shape_is_refused(folder, tokens, tmp_path):
    short = tokens[:, :3] > 0
    said = r"`token_mask` has the shape \[12, 3\], the windows of `data` \[12"
    with pytest.raises(tersor.TersorError, match=said):
        tersor.compress_folder(folder("bert"), tmp_path / "out", recipe(), tokens, token_mask=short)
    with pytest.raises(tersor.TersorError, match=said):
        tersor.compress_folder(folder("bert"), tmp_path / "out", recipe(), tokens, counted=short)
    with pytest.raises(tersor.TersorError, match="compress_folder got `token_mask` and `counted`, its former name"):
        tersor.compress_folder(folder("bert"), tmp_path / "out", recipe(), tokens, token_mask=short, counted=short)


def test_the_source_is_never_overwritten(folder, tmp_path):
    source = copied(folder("llama"), tmp_path / "models/a")
    (tmp_path / "alias").symlink_to(source)
    for out in (source, source.parent, tmp_path / "alias"):
        with pytest.raises(SavedFolderError, match="is or holds the model"):
            tersor.compress_folder(source, out, recipe("rtn"), force=True, progress=False)
    assert (source / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_originals_scores_are_those_of_its_float_head(folder, tokens, tmp_path):
    rule = Rule(layer="lm_head", weights=Quantization(format="int2", granularity="channel"))
    kind = recipe("rtn", format="int8").model_copy(update={"rules": (rule,)})
    report = tersor.compress_folder(
        folder("llama"), tmp_path / "out", kind, tokens, evaluate=tokens[:4], progress=False
    )  # fmt: skip
    with torch.no_grad():
        logits = float_model("llama", folder("llama"))(tokens[:4]).logits[:, :-1]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:4, 1:].flatten())
    assert report.original.nats == pytest.approx(float(expected), abs=1e-5)
    assert report.divergence.nats > 1e-4


def test_what_is_stored_finer_than_the_rest_is_not_rounded(folder, tokens, tmp_path):
    source = copied(folder("llama", torch.bfloat16), tmp_path / "a")
    weights = load_file(source / "model.safetensors")
    name = "model.layers.0.input_layernorm.weight"
    weights[name] = torch.linspace(0.9, 1.1, 32)
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    tersor.compress_folder(source, tmp_path / "out", recipe(), tokens, progress=False)
    assert torch.equal(HfFolder(tmp_path / "out").tensor(name), weights[name])


def test_a_disk_that_fills_up_is_known_by_safetensors_words(folder, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("tersor.checkpoints.tensors.save_file", full)
        with pytest.raises(CheckpointError, match=r"disk of .* is full"):
            tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), progress=False)
    (tmp_path / ".out.partial/job.json").write_text("")
    with pytest.raises(SavedFolderError, match="interrupted run"):
        tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), progress=False)


@pytest.mark.parametrize("option", ["--engine=openvino", "--no-evaluate"])
def test_options_of_the_other_kind_are_refused(option, folder, tmp_path):
    from typer.testing import CliRunner

    from tersor.cli import app

    done = CliRunner().invoke(app, ["compress", str(folder("llama")), option, "-o", str(tmp_path / "out")])
    assert "is an option for tasks, but " in str(done.exception)


def test_zeros_alone_leave_the_weights_float_and_name_their_pruner(folder, tokens, tmp_path):
    wanted = Recipe(name="zeros", activations=FLOAT, sparsity="50% per row", pruner="magnitude")
    report = tersor.compress_folder(folder("llama"), tmp_path / "out", wanted, tokens, progress=False)
    assert "quantization_config" not in HfFolder(tmp_path / "out").config
    assert all(w.method.startswith("magnitude") for w in report.weights if w.format)
    joint = wanted.model_copy(update={"weights": recipe().weights})
    with pytest.raises(RecipeError, match=r"q_proj: sparse and quantized at once .* not magnitude and gptq"):
        prepare_job(folder("llama"), joint, tokens)


def test_a_folder_that_came_to_be_meanwhile_is_kept(folder, tmp_path, monkeypatch):
    from tersor.pipeline.folder import compress as language

    def late(*arguments):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine").write_text("kept")
        return finish(*arguments)

    finish = language.finish
    monkeypatch.setattr(language, "finish", late)
    with pytest.raises(SavedFolderError, match="exists: choose another folder"):
        tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), progress=False)
    assert (tmp_path / "out/mine").read_text() == "kept"


@pytest.mark.parametrize(("kind", "change", "what"), [("bert", {"awq": True}, "awq"), ("mixtral", {}, "experts")])
def test_padding_that_would_count_is_refused(kind, change, what, folder, tokens, tmp_path):
    wanted = recipe().model_copy(update=change)
    with pytest.raises(tersor.TersorError, match=f"padding would count for .*{what}"):
        tersor.compress_folder(folder(kind), tmp_path / "out", wanted, tokens, token_mask=tokens > 0, progress=False)


def test_a_language_model_is_not_run_on_numpy_files(folder, tmp_path):
    from tersor.pipeline.graph.deployed import load_network

    tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), progress=False)
    with pytest.raises(SavedFolderError, match=r"holds a language model: run it with `tersor generate`"):
        load_network(tmp_path / "out")


def test_a_text_that_is_too_short_is_told_by_its_option(folder, tokens, monkeypatch):
    monkeypatch.setattr("tersor.pipeline.folder.text.tokenizer_of", lambda path: None)
    monkeypatch.setattr("tersor.pipeline.folder.text.tokens_of", lambda *_: Tokens(tokens[0], None, "", ""))
    with pytest.raises(MetricError, match=r"^data \(--data\): the text has 16 tokens, and one window of 32 .* length$"):
        prepare_job(folder("llama"), recipe(), "few words", length=32)
    with pytest.raises(MetricError, match=r"^evaluate \(--valid\): the text has 16 tokens"):
        prepare_job(folder("llama"), recipe(), tokens, evaluate="few words", length=32)
    with pytest.raises(MetricError, match=r"an ending other than .txt or .jsonl as pathlib.Path"):
        prepare_job(folder("llama"), recipe(), "corpus/train.log", length=32)


def test_judging_on_the_text_of_the_calibration_is_said(folder, tokens):
    def said(evaluate):
        return [w for w in prepare_job(folder("llama"), recipe(), tokens, evaluate=evaluate).preflight.warnings
                if "--valid" in w]  # fmt: skip

    assert len(said(tokens)) == 1
    assert said(tokens[:4]) == []


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"granularity": "group:16"}, "int4 per group:16 symmetric, gptq"),
        ({"format": "int8"}, "int8 per channel symmetric, gptq"),
        ({"format": "int8", "solver": "rtn"}, "int8 per channel symmetric, rtn"),
    ],
)
def test_a_rule_inherits_what_it_does_not_name(weights, said, folder, tokens):
    rule = Rule(layer="*.down_proj", weights=Quantization(**weights))
    wanted = recipe().model_copy(update={"rules": (rule,)})
    job = prepare_job(folder("llama"), wanted, tokens)
    assert {p.reason for p in job.plans if "down_proj" in p.name} == {said}
    assert {p.reason for p in job.plans if "up_proj" in p.name} == {"int4 per channel symmetric, gptq"}
    assert not any("rule" in warning for warning in job.preflight.warnings)


def test_who_may_read_the_files_is_for_the_umask_to_say(folder, tmp_path):
    tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), progress=False)
    (tmp_path / "new").touch()
    modes = {p.name: p.stat().st_mode for p in (tmp_path / "out").glob("model*.safetensors")}
    assert len(modes) == 3
    assert set(modes.values()) == {(tmp_path / "new").stat().st_mode}


def test_a_place_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SavedFolderError, match=r"file/out cannot be written \(Not a directory\)"):
        tersor.compress_folder(folder("llama"), tmp_path / "file/out", recipe("rtn"), progress=False)


def test_the_bar_of_perplexity_ends_at_its_end(folder, tokens, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Stage, "at", lambda self, done, total=None: seen.append((done, total)))
    held = tokens[:4]
    tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), evaluate=held, progress=False)
    assert [s for s in seen if s[0]] == [(k, 4) for k in range(1, 5)]


def test_a_folder_that_is_not_there_is_no_question_of_its_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere has no config.json"):
        tokenizer_of(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("rules", [(), (Rule(layer="*.1.*", weights=Quantization(format="int8")),)])
def test_others_open_a_folder_without_the_base_models_prefix(rules, tmp_path):
    torch.manual_seed(0)
    transformers.LlamaModel(transformers.LlamaConfig(**SMALL, **IDS, tie_word_embeddings=True)).save_pretrained(
        tmp_path / "base"
    )
    source = edited(tmp_path / "base", architectures=["LlamaForCausalLM"])
    wanted = recipe("rtn", granularity="group:16").model_copy(update={"rules": rules})
    tersor.compress_folder(source, tmp_path / "out", wanted, progress=False)
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        found = float_model("llama", tmp_path / "out")(ids).logits
        expected = tersor.load(tmp_path / "out")(ids).logits
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_windows_longer_than_the_model_takes_and_no_windows_are_refused(kind, folder, tokens):
    long = torch.ones(2, 65, dtype=torch.int64)
    for data, evaluate in ((long, None), (tokens, long)):
        with pytest.raises(TaskError, match=r"windows have 65 tokens, .* at most 64 .*--length 64"):
            prepare_job(folder(kind), recipe(), data, evaluate=evaluate)
    assert prepare_job(folder(kind), recipe(), long[:, :64]).calibration.protocol.length == 64
    for samples in (0, -1):
        with pytest.raises(TaskError, match=f"--samples is {samples}"):
            prepare_job(folder(kind), recipe(), tokens, samples=samples)


@pytest.mark.parametrize(
    ("change", "evaluated", "message"),
    [({}, True, "does not return logits.*omit `evaluate`"), ({"rotate": True}, False, "no head.*omit `rotate`")],
)
def test_what_the_end_cannot_do_is_said_before_a_block_is_solved(change, evaluated, message, tokens, tmp_path):
    source = tmp_path / "base"
    transformers.LlamaModel(transformers.LlamaConfig(**SMALL, **IDS)).save_pretrained(source)
    evaluate = tokens[:2] if evaluated else None
    with pytest.raises(tersor.TersorError, match=message):
        tersor.compress_folder(
            source, tmp_path / "out", recipe().model_copy(update=change), tokens, evaluate=evaluate, progress=False
        )
    assert not list(tmp_path.glob(".out.partial/*.safetensors"))


def test_an_encoder_is_not_taken_for_the_whole_model(tmp_path):
    sizes = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = transformers.BartConfig(d_model=32, encoder_layers=3, decoder_layers=2, vocab_size=48, **sizes)
    transformers.BartForConditionalGeneration(config).save_pretrained(tmp_path / "bart")
    with pytest.raises(CaptureError, match=r"lists of 3 and 2 blocks, model.encoder.layers and model.decoder.layers"):
        prepare_job(tmp_path / "bart", "int4-weight", None)


def test_a_head_narrower_than_the_model_is_one(tmp_path):
    narrow = transformers.LlamaConfig(**{**SMALL, "vocab_size": 24}, **IDS)
    transformers.LlamaForCausalLM(narrow).save_pretrained(tmp_path / "m")
    rule = Rule(layer="lm_head", weights=Quantization(format="int8", granularity="channel"))
    wanted = recipe("rtn").model_copy(update={"rules": (rule,)})
    tersor.compress_folder(tmp_path / "m", tmp_path / "out", wanted, progress=False)
    assert QuantizedFolder(tmp_path / "out").qtensor("lm_head.weight").spec.format.name == "int8"


def _linked(partial):
    partial.rmdir()
    (partial.parent / "mine").mkdir()
    partial.symlink_to(partial.parent / "mine")


FOREIGN_PARTS = {
    "a file": lambda partial: (partial / "notes.txt").write_text("mine"),
    "a folder": lambda partial: (partial / ".git").mkdir(),
    "a folder for a file": lambda partial: (partial / "job.json").mkdir(),
    "a link": lambda partial: (partial / "lock").symlink_to("/etc/hostname"),
    "a link itself": _linked,
}


@pytest.mark.parametrize("kind", FOREIGN_PARTS)
def test_a_working_folder_that_holds_what_no_run_wrote_is_kept(kind, folder, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    FOREIGN_PARTS[kind](tmp_path / ".out.partial")
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    for force in (False, True):
        with pytest.raises(SavedFolderError, match=r"\.out\.partial, where parts of the run are kept, "):
            tersor.compress_folder(folder("llama"), tmp_path / "out", recipe("rtn"), force=force, progress=False)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_out_is_neither_in_the_source_nor_replaced_with_more_in_it(folder, tmp_path):
    source = copied(folder("llama"), tmp_path / "model")
    with pytest.raises(SavedFolderError, match="lies in the folder of the model"):
        tersor.compress_folder(source, source / "small", recipe("rtn"), progress=False)
    out = tmp_path / ("n" * 250)
    tersor.compress_folder(source, out, recipe("rtn"), progress=False)
    (out / "mine.py").write_text("mine")
    with pytest.raises(SavedFolderError, match=r"mine\.py in it is not Tersor's"):
        tersor.compress_folder(source, out, recipe("rtn"), force=True, progress=False)
    assert (out / "mine.py").is_file()
    (out / "mine.py").unlink()
    tersor.compress_folder(source, out, recipe("rtn"), force=True, progress=False)
    assert [p.name[:2] for p in sorted(tmp_path.iterdir())] == ["mo", "nn"]
