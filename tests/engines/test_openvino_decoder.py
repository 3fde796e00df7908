"""What OpenVINO decodes is what transformers generates from the same weights, dequantized."""

from collections.abc import Mapping
from functools import cache

import openvino as ov
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from scripts.stories260k import write
from tersor.engines.openvino.decoder import OpenVinoDecoder
from tersor.errors import EngineError
from tersor.numerics import QTensor, QuantSpec, quantize_tensor

EXACT = {"threads": 1, "precision": "f32", "runtime_group": 0, "cache": "f32"}
ENDS = QuantSpec("int8", "channel")
_COMMON = {"vocab_size": 61, "max_position_embeddings": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA = {**_COMMON, **_IDS, "hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}
CONFIGS = {
    "llama": (LlamaConfig(**_LLAMA), QuantSpec("int4", "group:32")),
    "qwen3": (Qwen3Config(head_dim=16, **_LLAMA), QuantSpec("uint4", "group:64", False)),
    "mistral": (MistralConfig(sliding_window=4, **_LLAMA), QuantSpec("int8", "group:32", False)),
    # Its layers keep their weights as [in, out].
    "gpt2": (
        GPT2Config(vocab_size=61, n_embd=64, n_layer=2, n_head=4, n_positions=48, **_IDS),
        QuantSpec("int4", "channel:1"),
    ),
    "opt": (
        OPTConfig(hidden_size=64, ffn_dim=96, word_embed_proj_dim=64, **_COMMON, **_IDS),
        QuantSpec("int4", "channel", False),
    ),
}


def _empty(config: PreTrainedConfig):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).eval()


def _is_end(name: str) -> bool:
    return any(part in name for part in ("embed", "head", "wte", "wpe"))


def _quantized(config: PreTrainedConfig, spec: QuantSpec):
    """A random model that holds the dequantized weights, and the weights; large ones make its answers differ."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    weights: dict[str, Tensor | QTensor] = {}
    for name, value in model.named_parameters():
        weights[name] = value
        if value.ndim == 2:
            weights[name] = quantized = quantize_tensor(8 * value.detach(), ENDS if _is_end(name) else spec)
            value.data.copy_(quantized.dequantize())
    return model, weights


class Lazy(Mapping[str, Tensor | QTensor]):
    """Counts what it is asked for."""

    def __init__(self, weights: Mapping[str, Tensor | QTensor]) -> None:
        self.weights, self.asked = weights, []

    def __getitem__(self, name: str) -> Tensor | QTensor:
        self.asked.append(name)
        return self.weights[name]

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __iter__(self):
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@cache
def _built(name: str):
    """A model, its quantized weights, the empty model, and the decoder made of these two."""
    config, spec = CONFIGS[name]
    model, weights = _quantized(config, spec)
    lazy, empty = Lazy(weights), _empty(config)
    empty.set_attn_implementation("eager")
    return model, lazy, empty, OpenVinoDecoder.build(empty, lazy, **EXACT)


# A graph takes seconds to trace.
@pytest.fixture(params=["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS if n != "llama")])
def pair(request):
    model, lazy, _, decoder = _built(request.param)
    return model, lazy.weights, decoder


@pytest.fixture
def llama():
    return _built("llama")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_greedy_tokens_and_logits_are_those_of_transformers(pair):
    model, _, decoder = pair
    prompts = torch.randint(3, 61, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.generate(prompts, max_new_tokens=16, do_sample=False, eos_token_id=-1, pad_token_id=0)
        logits = model(expected).logits
    assert len(expected[:, 7:].unique()) > 3, "an answer that repeats one token proves little"
    assert torch.equal(decoder.generate(prompts, 16), expected)
    torch.testing.assert_close(decoder.logits(expected), logits, rtol=1e-4, atol=1e-4)


def test_weights_stay_codes_and_attention_holds_the_cache(pair):
    _, weights, decoder = pair
    layers = {n.removesuffix(".weight"): w for n, w in weights.items() if isinstance(w, QTensor) and not _is_end(n)}
    products = {n: row.precision for row in decoder.executed() for n in row.nodes if row.op == "FullyConnected"}
    for name, weight in layers.items():
        assert products[name] == f"int{weight.spec.format.bits}", name
    assert "fp32" not in products.values(), "no product reads a float weight"
    assert decoder.cached_layers() == 2


def test_what_is_saved_decodes_alike(pair, tmp_path):
    _, weights, decoder = pair
    tokens = torch.arange(3, 12)[None]
    assert decoder.save(tmp_path) == ("model.xml", "model.bin")
    again = OpenVinoDecoder.load(tmp_path, **EXACT)
    torch.testing.assert_close(again.logits(tokens), decoder.logits(tokens), rtol=1e-5, atol=1e-5)
    assert torch.equal(again.generate(tokens, 8), decoder.generate(tokens, 8))
    assert again.longest == 48
    model = ov.Core().read_model(tmp_path / "model.xml")
    for name in ("input_ids", "beam_idx"):
        assert ov.layout_helpers.batch_idx(model.input(name).node.layout) == 0
    stored = sum(w.codes.numel() * w.spec.format.bits // 8 for w in weights.values() if isinstance(w, QTensor))
    floats = 4 * sum(w.codes.numel() for w in weights.values() if isinstance(w, QTensor))
    assert stored < (tmp_path / "model.bin").stat().st_size < stored + floats / 4


def test_each_weight_is_looked_up_once(llama):
    _, lazy, _, _ = llama
    assert sorted(lazy.asked) == sorted(lazy.weights)


def test_the_model_stays_as_it_was(llama):
    _, _, empty, decoder = llama
    assert empty.config._attn_implementation == "eager"
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    assert decoder.cached_layers() == 2


@pytest.mark.slow
def test_a_tied_weight_may_differ_at_its_two_ends():
    config = LlamaConfig(**{**_LLAMA, "num_hidden_layers": 1}, tie_word_embeddings=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    weights: dict[str, Tensor | QTensor] = {n: p.detach() for n, p in model.named_parameters()}
    assert "lm_head.weight" not in weights
    head = quantize_tensor(model.lm_head.weight, ENDS)
    decoder = OpenVinoDecoder.build(_empty(config), weights | {"lm_head.weight": head}, **EXACT)
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad():
        hidden = model.model(tokens).last_hidden_state
    torch.testing.assert_close(decoder.logits(tokens), hidden @ head.dequantize().T, rtol=1e-4, atol=1e-5)


@pytest.mark.exact_int8
def test_tokens_are_quantized_at_run_time_where_asked(llama):
    _, _, _, decoder = llama
    tokens = torch.arange(3, 20)[None]
    exact = decoder.logits(tokens)
    rounded = OpenVinoDecoder(decoder.model, **(EXACT | {"runtime_group": 32})).logits(tokens)
    error = float((rounded - exact).norm() / exact.norm())
    # Of 127 levels.
    assert 1e-4 < error < 0.05


def test_an_end_of_text_ends_each_row(llama):
    decoder = llama[-1]
    prompts = torch.tensor([[5, 6], [9, 4]])
    whole = decoder.generate(prompts, 12)
    end = int(whole[0, 4])
    found = decoder.generate(prompts, 12, eos_token_id=end)
    for row, full in zip(found, whole, strict=True):
        after = (full[2:] == end).nonzero()
        stop = 3 + int(after[0]) if len(after) else len(row)
        assert torch.equal(row[:stop], full[:stop])
        assert bool((row[stop:] == end).all())


def test_drawing_follows_the_softmax_and_the_seed(llama):
    decoder = llama[-1]
    prompts = torch.tensor([[5, 6]]).expand(2000, -1)
    drawn = decoder.generate(prompts, 1, temperature=0.7, seed=3)
    assert torch.equal(drawn, decoder.generate(prompts, 1, temperature=0.7, seed=3))
    wanted = (decoder.logits(prompts[:1])[0, -1] / 0.7).softmax(0)
    found = drawn[:, -1].bincount(minlength=61) / 2000
    # Four standard errors of the likeliest.
    assert float((found - wanted).abs().max()) < 4 * float(wanted.max() / 2000) ** 0.5


@pytest.mark.parametrize(
    ("tokens", "more", "words"),
    [
        (torch.tensor([[61]]), 1, "tokens from 61 to 61, but the model knows 61"),
        (torch.tensor([[-1]]), 1, "tokens from -1"),
        (torch.tensor([[5] * 40]), 9, "49 tokens, but the model takes at most 48"),
        (torch.tensor([5]), 1, r"\[batch, n\]"),
        (torch.zeros(1, 0, dtype=torch.long), 1, r"\[batch, n\]"),
    ],
)
def test_tokens_that_it_does_not_know_are_refused(llama, tokens, more, words):
    with pytest.raises(EngineError, match=words):
        llama[-1].generate(tokens, more)


def test_a_weight_that_is_missing_is_named(llama):
    _, lazy, empty, _ = llama
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(EngineError, match=f"the weights lack {name}"):
        OpenVinoDecoder.build(empty, {n: w for n, w in lazy.weights.items() if n != name})


def test_models_without_a_cache_of_keys_and_values_are_refused():
    mamba = _empty(MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(EngineError, match="MambaForCausalLM keeps no cache between tokens"):
        OpenVinoDecoder.build(mamba, dict(mamba.named_parameters()))
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(vocab_size=61, d_model=16, num_layers=1, num_heads=2, d_ff=16))
    with pytest.raises(EngineError, match="has an encoder"):
        OpenVinoDecoder.build(model, dict(model.named_parameters()))


@pytest.mark.slow
@pytest.mark.real
def test_the_same_story_is_written(shared, tmp_path):
    folder = write(tmp_path / "stories", shared / "data/stories260k")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = torch.tensor([tokenizer("Once upon a time").input_ids])
    decoder = OpenVinoDecoder.build(_empty(model.config), model.state_dict(), **EXACT)
    expected = model.generate(prompt, max_new_tokens=60, do_sample=False)
    found = decoder.generate(prompt, 60, eos_token_id=2)
    assert tokenizer.decode(found[0]) == tokenizer.decode(expected[0])
    assert tokenizer.decode(found[0]).startswith("<s> Once upon a time, there was a")
