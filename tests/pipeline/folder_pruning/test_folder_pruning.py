"""Language-model folders made smaller: what is left computes what the dense model does without what went."""

import hashlib
import json

import pytest
import torch
import transformers as t

import tersor
from tersor.errors import CheckpointError, RecipeError, RewriteError, TaskError
from tersor.measure.language import read_language_report
from tersor.pipeline.folder.journal import Journal
from tests.pipeline.tiny_folders import LM, MODELS, distance, written

MORE = {
    **MODELS,
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**LM, head_dim=8)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**LM)),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**LM | {"head_dim": 8})),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**LM)),
    "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**LM, num_local_experts=4, num_experts_per_tok=2)),
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "opt": lambda: t.OPTForCausalLM(
        t.OPTConfig(vocab_size=48, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                    max_position_embeddings=64, word_embed_proj_dim=32)
    ),
}  # fmt: skip
IDS = torch.randint(3, 47, (8, 24), generator=torch.Generator().manual_seed(5))


def pruned(source, out, target, data=IDS, **options):
    more = {k: options.pop(k) for k in ("evaluate", "quantize", "token_mask") if k in options}
    steps = [{"prune": {"target": target, "repair": "none"} | options}]
    steps += [{"quantize": more.pop("quantize")}] if "quantize" in more else []
    return tersor.compress_folder(source, out, tersor.Recipe(name="p", steps=steps), data, progress=False, **more)


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def config(folder):
    return json.loads((folder / "config.json").read_text())


def kept_columns(dense, small):
    """The rows of a matrix that a smaller one still has, by value."""
    found = [int((dense == row).all(1).nonzero()[0]) for row in small]
    assert len(set(found)) == len(found)
    return found


# What a module stores its MLP's reader in, and its writer; [out, in] after `turned`.
MLPS = {
    "llama": ("model.layers", "mlp.gate_proj", "mlp.down_proj"),
    "qwen2": ("model.layers", "mlp.gate_proj", "mlp.down_proj"),
    "mistral": ("model.layers", "mlp.gate_proj", "mlp.down_proj"),
    "gemma2": ("model.layers", "mlp.gate_proj", "mlp.down_proj"),
    "phi3": ("model.layers", "mlp.gate_up_proj", "mlp.down_proj"),
    "gpt2": ("transformer.h", "mlp.c_fc", "mlp.c_proj"),
    "opt": ("model.decoder.layers", "fc1", "fc2"),
}


def quick(names, *others):
    """All names, of which only some run in the quick suite."""
    return [*names, *(pytest.param(n, marks=pytest.mark.slow) for n in others)]


@pytest.mark.parametrize("name", quick(["llama", "phi3", "gpt2"], "qwen2", "mistral", "gemma2", "opt"))
def test_columns_of_an_mlp_go_as_if_they_were_zero(name, tmp_path):
    """The dense model with zeros where the columns that went are read, found by comparing rows, says the same."""
    dense = MORE[name]()
    source = written(tmp_path / "source", dense)
    done = pruned(source, tmp_path / "out", "25% mlp")
    small = t.AutoModelForCausalLM.from_pretrained(done.folder)
    path, writer, reader = MLPS[name]
    for a, b in zip(dense.get_submodule(path), small.get_submodule(path), strict=True):
        turn = (lambda w: w.T) if name == "gpt2" else (lambda w: w)
        rows, few = turn(a.get_submodule(writer).weight), turn(b.get_submodule(writer).weight)
        width = turn(a.get_submodule(reader).weight).shape[1]
        kept = [k for k in kept_columns(rows, few) if k < width]
        assert len(kept) == 0.75 * width
        gone = sorted(set(range(width)) - set(kept))
        with torch.no_grad():
            turn(a.get_submodule(reader).weight)[:, gone] = 0
    assert distance(logits(small), logits(dense)) <= 1e-5
    assert distance(logits(tersor.load(done.folder).model), logits(dense)) <= 1e-5
    (record,) = done.prunings
    assert record.numbers[0].after == 0.75 * record.numbers[0].before
    assert record.parameters == (sum(p.numel() for p in dense.parameters()), sum(p.numel() for p in small.parameters()))
    assert record.parameters[1] < record.parameters[0]


@pytest.mark.parametrize("name", quick(["qwen2", "phi3"], "llama", "qwen3", "mistral", "gemma2", "mixtral"))
def test_heads_go_with_their_keys_and_values(name, tmp_path):
    dense = MORE[name]()
    source = written(tmp_path / "source", dense)
    done = pruned(source, tmp_path / "out", "50% heads", score="magnitude")
    small = t.AutoModelForCausalLM.from_pretrained(done.folder)
    stated = config(done.folder)
    assert (stated["num_attention_heads"], stated["num_key_value_heads"], stated["head_dim"]) == (2, 1, 8)
    for a, b in zip(dense.model.layers, small.model.layers, strict=True):
        few, whole = b.self_attn.o_proj.weight, a.self_attn.o_proj.weight
        assert few.shape == (32, 16)
        first = torch.equal(few, whole[:, :16])
        assert first or torch.equal(few, whole[:, 16:])
        with torch.no_grad():
            whole[:, slice(16, 32) if first else slice(0, 16)] = 0
    assert distance(logits(small), logits(dense)) <= 1e-5


class Without(torch.overrides.TorchFunctionMode):
    """Routers give some experts no chance."""

    def __init__(self, gone):
        super().__init__()
        self.gone = gone  # by the address of the router's weight

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and args[1].data_ptr() in self.gone:
            out[..., self.gone[args[1].data_ptr()]] = -torch.inf
        return out


@pytest.mark.parametrize("score", ["magnitude", "obs"])
@pytest.mark.parametrize("name", quick(["mixtral"], "qwen2_moe", "olmoe"))
def test_experts_go_with_their_rows_of_the_router(name, score, tmp_path):
    dense = MORE[name]()
    source = written(tmp_path / "source", dense)
    done = pruned(source, tmp_path / "out", "25% experts", score=score)
    small = t.AutoModelForCausalLM.from_pretrained(done.folder)
    gone = {}
    for a, b in zip(dense.model.layers, small.model.layers, strict=True):
        kept = kept_columns(a.mlp.gate.weight, b.mlp.gate.weight)
        assert len(kept) == 3
        assert torch.equal(b.mlp.experts.down_proj, a.mlp.experts.down_proj[kept])
        gone[a.mlp.gate.weight.data_ptr()] = sorted(set(range(4)) - set(kept))
    with Without(gone):
        wanted = logits(dense)
    assert distance(logits(small), wanted) <= 1e-5


@pytest.mark.parametrize("name", quick(["qwen2_moe"], "mixtral"))
def test_each_expert_loses_columns_of_its_own(name, tmp_path):
    dense = MORE[name]()
    source = written(tmp_path / "source", dense)
    done = pruned(source, tmp_path / "out", "50% mlp")
    small = t.AutoModelForCausalLM.from_pretrained(done.folder)
    choices = set()
    for a, b in zip(dense.model.layers, small.model.layers, strict=True):
        width = a.mlp.experts.down_proj.shape[2]
        for e in range(4):
            kept = kept_columns(a.mlp.experts.down_proj[e].T, b.mlp.experts.down_proj[e].T)
            assert len(kept) == width // 2
            choices.add(tuple(kept))
            with torch.no_grad():
                a.mlp.experts.down_proj[e][:, sorted(set(range(width)) - set(kept))] = 0
        if name == "qwen2_moe":  # the shared expert has a width of its own
            kept = kept_columns(a.mlp.shared_expert.gate_proj.weight, b.mlp.shared_expert.gate_proj.weight)
            assert len(kept) == 16
            with torch.no_grad():
                a.mlp.shared_expert.down_proj.weight[:, sorted(set(range(32)) - set(kept))] = 0
    assert len(choices) > 1
    assert distance(logits(small), logits(dense)) <= 1e-5


@pytest.mark.parametrize("name", quick(["gemma2"], "llama", "gpt2"))
def test_the_layer_that_turns_the_hidden_state_least_goes(name, tmp_path):
    torch.manual_seed(0)
    deep = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**LM | {"num_hidden_layers": 4})),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**LM | {"num_hidden_layers": 4, "head_dim": 8},
                                                             sliding_window=8)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=48, n_embd=32, n_layer=4, n_head=4, n_positions=64)),
    }[name]()  # fmt: skip
    layers = deep.transformer.h if name == "gpt2" else deep.model.layers
    source = written(tmp_path / "source", deep)
    with torch.no_grad():  # the second adds little
        for key, value in layers[1].named_parameters():
            if any(part in key for part in ("o_proj", "down_proj", "c_proj")):
                value.mul_(1e-3)
            if name == "gemma2" and any(part in key for part in ("post_attention_l", "post_feedforward")):
                value.fill_(-0.99)  # its norms multiply by 1 + weight
    deep.save_pretrained(source)
    done = pruned(source, tmp_path / "out", "25% layers")
    small = t.AutoModelForCausalLM.from_pretrained(done.folder)
    assert done.prunings[0].gone[0].endswith(".1")
    del layers[1]
    for k, layer in enumerate(layers):  # caches are not used
        attention = layer.attn if name == "gpt2" else layer.self_attn
        attention.layer_idx = k
    deep.config = small.config
    for part in (deep.transformer if name == "gpt2" else deep.model,):
        part.config = small.config
    assert distance(logits(small), logits(deep)) <= 1e-5


@pytest.mark.parametrize("gone", [0, 2])
def test_the_first_and_the_last_layer_can_go(gone, source, tmp_path):
    held = IDS[:2] + 1
    keep = [f"model.layers.{k}" for k in range(3) if k != gone]
    done = pruned(source, tmp_path / "out", "33% layers", keep=keep, evaluate=held)
    fitted = pruned(source, tmp_path / "fitted", "33% layers", keep=keep, evaluate=held, repair="ridge")
    dense = t.AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        said = dense(held).logits[:, :-1].flatten(0, 1)
    whole = torch.nn.functional.cross_entropy(said, held[:, 1:].flatten())
    assert done.report.original.nats == pytest.approx(whole.item(), rel=1e-5)
    assert done.prunings[0].gone == (f"model.layers.{gone}",)
    assert fitted.prunings[0].errors[-1] < done.prunings[0].errors[-1]
    del dense.model.layers[gone]
    for k, layer in enumerate(dense.model.layers):
        layer.self_attn.layer_idx = k
    dense.config.num_hidden_layers = 2
    assert distance(logits(t.AutoModelForCausalLM.from_pretrained(done.folder)), logits(dense)) <= 1e-5


def test_a_folder_in_bfloat16_stays_in_it(tmp_path):
    dense = MORE["llama"]().to(torch.bfloat16)
    source = written(tmp_path / "source", dense)
    errors = {}
    for repair in ("none", "ridge"):
        done = pruned(source, tmp_path / repair, "25% mlp", repair=repair)
        small = t.AutoModelForCausalLM.from_pretrained(done.folder, dtype="auto")
        assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
        errors[repair] = done.prunings[0].errors
    assert all(b < a for a, b in zip(errors["none"], errors["ridge"], strict=True))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "llama"
    torch.manual_seed(0)
    model = t.LlamaForCausalLM(t.LlamaConfig(**LM | {"num_hidden_layers": 3}, initializer_range=0.2))
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("target", ["25% mlp", "50% heads", "33% layers"])
def test_repair_brings_every_block_nearer_to_the_dense_one(target, source, tmp_path):
    held = torch.randint(3, 47, (4, 24), generator=torch.Generator().manual_seed(8))
    found = {
        repair: pruned(source, tmp_path / repair, target, repair=repair, evaluate=held) for repair in ("none", "ridge")
    }
    cut, fitted = (found[r].prunings[0].errors for r in ("none", "ridge"))
    assert len(cut) == len(fitted) == config(found["none"].folder)["num_hidden_layers"]
    assert all(b < a or a == b == 0 for a, b in zip(cut, fitted, strict=True))
    assert fitted[-1] < 0.9 * cut[-1]
    assert found["ridge"].report.original == found["none"].report.original


def test_the_ridge_is_the_least_squares_of_the_dense_block(tmp_path):
    """In one block, in float64, by another way: the columns that are left, fitted to the dense output of the MLP."""
    model = t.LlamaForCausalLM(t.LlamaConfig(**LM | {"num_hidden_layers": 1}))
    source = written(tmp_path / "source", model)
    done = pruned(source, tmp_path / "out", "25% mlp", repair={"ridge": {"strength": 1e-9}})
    small = t.AutoModelForCausalLM.from_pretrained(done.folder)
    seen = {}
    for key, module in (("dense", model.model.layers[0].mlp), ("small", small.model.layers[0].mlp)):
        module.register_forward_hook(lambda m, args, out, key=key: seen.update({key: (args[0], out)}))
        logits(model if key == "dense" else small)
    mlp, x = small.model.layers[0].mlp, seen["small"][0].flatten(0, 1)
    assert torch.allclose(seen["dense"][0], seen["small"][0])
    inner = (torch.nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)).double()
    best = torch.linalg.lstsq(inner, seen["dense"][1].flatten(0, 1).double()).solution
    assert distance(mlp.down_proj.weight.detach().double(), best.T.detach()) < 1e-3


def test_a_step_quantize_behind_it_quantizes_what_is_left(source, tmp_path):
    held = torch.randint(3, 47, (4, 24), generator=torch.Generator().manual_seed(8))
    done = pruned(source, tmp_path / "out", "25% mlp", repair="ridge", quantize="int8-weight", evaluate=held)
    float_ = pruned(source, tmp_path / "float", "25% mlp", repair="ridge", evaluate=held)
    assert read_language_report(done.folder) == done.report
    assert [s.name for s in done.subject.history] == ["prune", "quantize"]
    assert done.report.original == float_.report.original
    assert abs(done.report.compressed.nats - float_.report.compressed.nats) < 0.02
    assert done.report.compressed_bytes < float_.report.compressed_bytes < float_.report.original_bytes
    assert distance(logits(tersor.load(done.folder).model), logits(tersor.load(float_.folder).model)) < 0.05
    down = next(w for w in done.report.weights if w.name.endswith("down_proj"))
    assert down.shape == (32, 48)
    assert down.format


def test_two_steps_prune_in_turn(source, tmp_path):
    steps = [{"prune": {"target": "33% layers"}}, {"prune": {"target": "25% mlp"}}]
    held = torch.randint(3, 47, (4, 24), generator=torch.Generator().manual_seed(8))
    done = tersor.compress_folder(
        source, tmp_path / "out", tersor.Recipe(steps=steps), IDS, evaluate=held, progress=False
    )
    assert (config(done.folder)["num_hidden_layers"], config(done.folder)["intermediate_size"]) == (2, 48)
    assert len(done.prunings) == 2
    nats = pruned(source, tmp_path / "one", "25% mlp", evaluate=held).report.original
    assert done.report.original == nats


def test_a_number_of_parameters_is_reached_by_columns(source, tmp_path):
    done = pruned(source, tmp_path / "out", "1.1x parameters", score="magnitude", multiple=4)
    before, after = done.prunings[0].parameters
    width = config(done.folder)["intermediate_size"]
    assert before / after >= 1.1
    assert width % 4 == 0
    assert before / (after + 4 * 3 * 32 * 3) < 1.1  # four more columns in each block


def test_without_a_text_the_smallest_weights_go(source, tmp_path):
    done = pruned(source, tmp_path / "out", "50% heads", None, score="magnitude")
    same = pruned(source, tmp_path / "again", "50% heads", IDS, score="magnitude")
    assert digests(done.folder) == digests(same.folder)
    assert done.prunings[0].errors == ()


def digests(path):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("target", "stop"), [pytest.param("25% mlp", 1, marks=pytest.mark.slow), ("33% layers", 0), ("25% mlp", 3)]
)
def test_a_run_that_was_stopped_is_taken_up_to_the_same_bytes(target, stop, source, tmp_path, monkeypatch):
    held = IDS[:2] + 1
    options = {"repair": "ridge", "quantize": "int8-weight", "evaluate": held}
    whole = pruned(source, tmp_path / "whole", target, **options)
    write, count = Journal.write, 0

    def stopped(self, k, *rest):
        nonlocal count
        write(self, k, *rest)
        count += 1
        if count == stop + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        pruned(source, tmp_path / "out", target, **options)
    monkeypatch.undo()
    again = pruned(source, tmp_path / "out", target, **options)
    assert digests(again.folder) == digests(whole.folder)
    assert again.prunings == whole.prunings
    assert again.report.divergence == whole.report.divergence


def test_padding_does_not_count(source, tmp_path):
    mask = torch.ones(IDS.shape, dtype=torch.bool)
    mask[:, 16:] = False
    found = []
    for filler in (0, 40):
        ids = torch.where(mask, IDS, filler)
        found.append(pruned(source, tmp_path / str(filler), "25% mlp", ids, repair="ridge", token_mask=mask))
    assert digests(found[0].folder) == digests(found[1].folder)


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ("0.5% mlp", {}, "takes none of 64 columns"),
        ("99.9% mlp", {}, "leaves 0 of 64 columns"),
        ("95% mlp", {}, "at most 90% may go"),
        ("10% heads", {}, "takes none of 2 key-value heads .* at least 50%"),
        ("25% experts", {}, "has no experts"),
        ("2x macs", {}, "not for a folder .* `25% mlp`"),
        ("30% channels", {}, "not for a folder"),
        ("90% weights", {}, "not for a folder"),
        ("9x parameters", {}, "give .*x: ask for less"),
        ("25% mlp", {"score": "fisher"}, "needs gradients of the whole model"),
        ("25% mlp", {"structure": "branches"}, "one width for all blocks"),
        ("25% mlp", {"keep": "model.layers.0"}, "`keep` is for the target `layers`"),
        ("33% layers", {"score": "wanda"}, "leave `score` out"),
        ("33% layers", {"keep": "nowhere"}, "matches none of the layers"),
        ("33% layers", {"keep": "*"}, "leaves 0 to choose from"),
    ],
)  # fmt: skip
def test_what_is_not_for_folders_is_refused(target, options, said, source, tmp_path):
    with pytest.raises(RecipeError, match=said):
        pruned(source, tmp_path / "out", target, **options)
    assert not (tmp_path / "out").exists()


def test_what_needs_a_text_says_so(source, tmp_path):
    with pytest.raises(RecipeError, match="asks for calibration text"):
        pruned(source, tmp_path / "out", "25% mlp", None)
    with pytest.raises(RecipeError, match="asks for calibration text"):
        pruned(source, tmp_path / "out", "33% layers", None)


def test_a_number_of_heads_that_transformers_refuses_is_told_with_those_it_takes(tmp_path):
    """It wants the width of the stream to be a multiple of it."""
    heads = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    source = written(tmp_path / "llama", t.LlamaForCausalLM(t.LlamaConfig(**LM | heads)))
    with pytest.raises(RecipeError, match=r"leaves 3 of 4 key-value heads, .* it takes 2, 1: ask for `50% heads`"):
        pruned(source, tmp_path / "out", "25% heads", score="magnitude")


def test_heads_that_share_keys_and_heads_of_derived_width_stay(tmp_path):
    shared = t.LlamaForCausalLM(t.LlamaConfig(**LM | {"num_key_value_heads": 1}))
    with pytest.raises(RecipeError, match="share one key-value head"):
        pruned(written(tmp_path / "shared", shared), tmp_path / "out", "50% heads")
    for name in ("gpt2", "opt"):
        with pytest.raises(RecipeError, match="reads no head_dim"):
            pruned(written(tmp_path / name, MORE[name]()), tmp_path / "out", "50% heads")
    with pytest.raises(RecipeError, match=r"router of Mixtral.* chooses 2"):
        pruned(written(tmp_path / "mixtral", MORE["mixtral"]()), tmp_path / "out", "75% experts")


def test_what_depends_on_the_number_elsewhere_is_refused(tmp_path):
    """OLMo 2 takes the norm of all queries together, so fewer of them are others."""
    olmo = t.Olmo2ForCausalLM(t.Olmo2Config(**LM))
    with pytest.raises((RewriteError, RecipeError), match=r"in it depends on num_attention_heads|head_dim"):
        pruned(written(tmp_path / "olmo", olmo), tmp_path / "out", "50% heads")
    with pytest.raises(RecipeError, match=r"no number in its config.json that its MLPs' width follows"):
        pruned(written(tmp_path / "bloom", MORE["bloom"]()), tmp_path / "more", "25% mlp")


def test_a_quantized_folder_and_prune_behind_quantize_are_refused(source, tmp_path):
    tersor.compress_folder(source, tmp_path / "int8", "int8-weight", progress=False)
    with pytest.raises(CheckpointError, match="quantized already"):
        pruned(tmp_path / "int8", tmp_path / "out", "25% mlp")
    with pytest.raises((RecipeError, ValueError), match="cannot stand behind `quantize`"):
        tersor.Recipe(steps=[{"quantize": "int8-weight"}, {"prune": {"target": "25% mlp"}}])


def test_padding_among_experts_is_refused(tmp_path):
    mask = torch.ones(IDS.shape, dtype=torch.bool)
    with pytest.raises(TaskError, match="padding would count for the experts"):
        pruned(written(tmp_path / "m", MORE["mixtral"]()), tmp_path / "out", "25% mlp", token_mask=mask)
