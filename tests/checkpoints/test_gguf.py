"""GGUF files, read back by the gguf package, by transformers, and by hand."""

import json
import weakref
from itertools import chain, pairwise

import gguf
import pytest
import torch
from gguf.quants import dequantize
from gguf.quants import quantize as theirs
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.stories260k import tokenizer as stories_tokenizer
from tersor.checkpoints.gguf.blocks import KINDS, encode, encode_codes
from tersor.checkpoints.gguf.write import write_gguf
from tersor.errors import CheckpointError
from tersor.numerics import QuantSpec, quantize_tensor
from tests.checkpoints.tiny_llama import logits, quantized, standing_for, tiny_llama

TYPES = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}
TYPES["q4_k"] = gguf.GGMLQuantizationType.Q4_K


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decoded(content, kind, shape):
    return torch.from_numpy(dequantize(content.numpy().reshape(shape[0], -1), TYPES[kind])).reshape(shape)


def read(path):
    """Names in GGUF, and the float values of each tensor."""
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()) for t in tensors}


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    size=st.sampled_from([0, 32, 64, 96]),
    rows=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=50)
def test_codes_are_kept_bit_by_bit(bits, size, rows, seed):
    spec = QuantSpec(f"int{bits}", f"group:{size}" if size else "channel", scale_dtype="float16")
    q = quantize_tensor(noise(rows, 192, seed=seed), spec)
    kind, content = encode_codes("w", q)
    assert content.numel() == rows * 192 // 32 * KINDS[kind].nbytes
    assert torch.equal(decoded(content, kind, (rows, 192)), q.dequantize())


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec("int4", "group:32", symmetric=False, scale_dtype="float16"),
        QuantSpec("int4", "group:16", scale_dtype="float16"),
        QuantSpec("int4", "tensor", scale_dtype="float16"),
        QuantSpec("int4", "group:32"),
    ],
)
def test_grids_that_gguf_lacks_are_refused_by_name(spec):
    with pytest.raises(CheckpointError, match=r"head\.weight.*quantize it"):
        encode_codes("head.weight", quantize_tensor(noise(4, 64), spec))


@pytest.mark.parametrize("kind", ["q4_0", "q8_0"])
def test_floats_are_rounded_no_worse_than_by_the_gguf_package(kind):
    x = noise(64, 128)
    x[0], x[1] = 0.0, x[1].abs()
    ours = decoded(encode("w", x, kind), kind, x.shape)
    reference = torch.from_numpy(dequantize(theirs(x.numpy(), TYPES[kind]), TYPES[kind]))
    assert (ours - x).square().sum() <= 1.001 * (reference - x).square().sum()
    assert not ours[0].any()


def test_q4_k_finds_the_grid_that_holds_everything():
    """Values on a grid of Q4_K come back exactly: the six-bit fields are where they belong."""
    generator = torch.Generator().manual_seed(3)
    s, m = (torch.randint(8, 64, (3, 2, 8, 1), generator=generator) for _ in range(2))
    q = torch.randint(0, 16, (3, 2, 8, 32), generator=generator)
    s[:, :, 0], m[:, :, 1], q[..., 0], q[..., 1] = 63, 63, 0, 15
    x = (s * q * 2.0**-7 - m * 2.0**-8).flatten(1)
    back = decoded(encode("w", x, "q4_k"), "q4_k", x.shape)
    assert (back - x).abs().max() == 0


def test_q4_k_beats_the_grid_from_minimum_to_maximum():
    x = noise(32, 512)
    x[0], x[1], x[2] = 0.0, x[1].abs() + 1, -x[2].abs() - 1
    ours = decoded(encode("w", x, "q4_k"), "q4_k", x.shape)
    plain = quantize_tensor(x, QuantSpec("int4", "group:32", symmetric=False)).dequantize()
    assert (ours - x)[3:].square().sum() < 0.9 * (plain - x)[3:].square().sum()
    assert (ours - x)[:3].square().sum() < 1.1 * (plain - x)[:3].square().sum()
    assert not ours[0].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_what_fp16_cannot_hold_is_refused_by_name(value):
    x = noise(2, 32)
    x[1, 3] = value
    with pytest.raises(CheckpointError, match="head"):
        encode("head", x, "q4_0")


def test_a_file_holds_every_tensor_and_says_what_it_is(tmp_path):
    model = tiny_llama()
    path = tmp_path / "model.gguf"
    kinds = write_gguf(path, model.config.to_dict(), model.state_dict().items(), None, "q4_0", keep=["lm_head.weight"])
    assert kinds.keys() == model.state_dict().keys()
    assert kinds["lm_head.weight"] == "f16"
    assert kinds["model.norm.weight"] == "f32"
    assert kinds["model.layers.1.mlp.down_proj.weight"] == "q4_0"
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]
    reader = gguf.GGUFReader(path)
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert said["general.architecture"] == "llama"
    assert said["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    assert (said["llama.attention.head_count"], said["llama.attention.head_count_kv"]) == (4, 2)
    assert said["llama.rope.freq_base"] == 10000.0
    assert said["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert all(t.data_offset % 32 == 0 for t in reader.tensors)
    assert {t.name for t in reader.tensors} >= {"token_embd.weight", "output.weight", "blk.1.ffn_norm.weight"}
    up = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    assert tuple(up.shape) == (64, 192)


def test_rows_of_queries_and_keys_that_rotate_together_stand_side_by_side(tmp_path):
    model = tiny_llama()
    state = model.state_dict()
    choose = QuantSpec("int4", "group:32", scale_dtype="float16")
    qtensors = quantized(model, lambda name: choose if "layers.0" in name else None)
    write_gguf(tmp_path / "m.gguf", model.config.to_dict(), (state | qtensors).items(), None, "f16")
    found = read(tmp_path / "m.gguf")
    for layer, heads in (("q", 4), ("k", 2)):
        for block, expected in ((0, qtensors), (1, state)):
            name = f"model.layers.{block}.self_attn.{layer}_proj.weight"
            wanted = expected[name].dequantize() if block == 0 else expected[name].half().float()
            for head in range(heads):
                for k in range(8):
                    pair = wanted[[head * 16 + k, head * 16 + 8 + k]]
                    row = head * 16 + 2 * k
                    assert torch.equal(found[f"blk.{block}.attn_{layer}.weight"][row : row + 2], pair)
    assert torch.equal(found["blk.0.attn_v.weight"], qtensors["model.layers.0.self_attn.v_proj.weight"].dequantize())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["f16", "q4_0", "q8_0", "qtensors"])
def test_transformers_computes_the_same_logits(case, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    model = tiny_llama(tie_word_embeddings=case == "q8_0")
    spec = QuantSpec("int4", "group:32", scale_dtype="float16")
    qtensors = quantized(model, lambda _: spec) if case == "qtensors" else {}
    tensors = {k: t for k, t in model.state_dict().items() if case != "q8_0" or k != "lm_head.weight"}
    kind = "f16" if qtensors else case
    write_gguf(tmp_path / "m.gguf", model.config.to_dict(), (tensors | qtensors).items(), None, kind)
    open_folder = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    if case in TYPES:
        values = {k: decoded(encode(k, t, kind), kind, t.shape) for k, t in tensors.items() if t.ndim == 2}
    else:
        values = {k: t.half().float() for k, t in tensors.items()}
    if case == "q8_0":
        values["lm_head.weight"] = values["model.embed_tokens.weight"]
    expected = logits(standing_for(model, values | qtensors))
    torch.testing.assert_close(logits(open_folder), expected, atol=1e-4, rtol=1e-4)


def test_only_one_tensor_is_held_at_a_time(tmp_path):
    model = tiny_llama()
    last = []

    def one_by_one():
        for name, tensor in model.state_dict().items():
            assert not last or last.pop()() is None, f"the one before {name} is still there"
            copy = tensor.clone()
            last.append(weakref.ref(copy))
            yield name, copy
            del copy

    write_gguf(tmp_path / "m.gguf", model.config.to_dict(), one_by_one(), None)


def test_a_width_that_fills_no_block_is_named_or_kept(tmp_path):
    model = tiny_llama(hidden=172)
    arguments = tmp_path / "m.gguf", model.config.to_dict()
    with pytest.raises(CheckpointError, match=r"0\.mlp\.down_proj\.weight has 172 inputs, not a multiple of 32"):
        write_gguf(*arguments, model.state_dict().items(), None, "q4_0")
    with pytest.raises(CheckpointError, match="64 inputs, not a multiple of 256"):
        write_gguf(*arguments, model.state_dict().items(), None, "q4_k")
    kinds = write_gguf(*arguments, model.state_dict().items(), None, "q4_0", ragged="f16")
    assert {name for name, kind in kinds.items() if kind == "f16"} == {
        f"model.layers.{k}.mlp.down_proj.weight" for k in range(2)
    }


@pytest.mark.parametrize(
    ("change", "tensors", "message"),
    [
        ({"model_type": "gpt2"}, {}, "model_type 'gpt2'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, {}, "rope_type 'llama3'"),
        ({"hidden_act": "gelu"}, {}, "hidden_act 'gelu'"),
        ({"num_hidden_layers": 3}, {}, r"9 tensors are missing, the first is model\.layers\.2\.input_layernorm"),
        ({"num_hidden_layers": 1}, {}, r"model\.layers\.1\..* is not a tensor of the Llama"),
        ({}, {"visual.weight": torch.zeros(2, 32)}, r"visual\.weight is not a tensor"),
    ],
)
def test_another_network_is_refused_and_leaves_nothing_behind(change, tensors, message, tmp_path):
    model = tiny_llama()
    path = tmp_path / "m.gguf"
    path.write_text("the file of before")
    with pytest.raises(CheckpointError, match=message):
        write_gguf(path, model.config.to_dict() | change, (model.state_dict() | tensors).items(), None)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["the file of before"]


def test_a_tensor_that_comes_twice_and_a_folder_that_is_none_are_refused(tmp_path):
    model = tiny_llama()
    twice = [*model.state_dict().items(), ("model.norm.weight", model.model.norm.weight)]
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight was given twice"):
        write_gguf(tmp_path / "m.gguf", model.config.to_dict(), twice, None)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_gguf(tmp_path / "file/m.gguf", model.config.to_dict(), model.state_dict().items(), None)


@pytest.fixture
def stories(shared, tmp_path):
    table = json.loads((shared / "data/stories260k/tok512.json").read_text())
    folder = tmp_path / "tokenizer"
    tokenizer = stories_tokenizer(table)
    tokenizer.save_pretrained(folder)
    return folder, tokenizer


def merged(text, said):
    """SentencePiece as llama.cpp does it: of all neighbours, those join whose piece scores highest, leftmost first."""
    scores = dict(zip(said["tokenizer.ggml.tokens"], said["tokenizer.ggml.scores"], strict=True))
    ids = {piece: i for i, piece in enumerate(said["tokenizer.ggml.tokens"])}
    parts = list(("▁" if said["tokenizer.ggml.add_space_prefix"] else "") + text.replace(" ", "▁"))
    while True:
        joint = [(scores[a + b], -k) for k, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not joint:
            break
        k = -max(joint)[1]
        parts[k : k + 2] = [parts[k] + parts[k + 1]]
    bytewise = [[ids[p]] if p in ids else [ids[f"<0x{b:02X}>"] for b in p.encode()] for p in parts]
    first = [said["tokenizer.ggml.bos_token_id"]] if said["tokenizer.ggml.add_bos_token"] else []
    return [*first, *chain.from_iterable(bytewise)]


def test_the_vocabulary_splits_texts_as_the_tokenizer_does(stories, shared, tmp_path):
    folder, tokenizer = stories
    model = tiny_llama(vocab=515)
    write_gguf(tmp_path / "m.gguf", model.config.to_dict(), model.state_dict().items(), folder)
    said = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    lines = (shared / "data/stories260k/tinystories_valid.txt").read_text()[:3000].split("\n")
    for line in [*filter(None, lines), "a café 🐈", "  two spaces"]:
        assert merged(line, said) == tokenizer(line)["input_ids"], line
    types = said["tokenizer.ggml.token_type"]
    assert types[:4] == [2, 3, 3, 6]
    assert types[512:] == [5, 5, 5]
    assert (said["tokenizer.ggml.eos_token_id"], said["tokenizer.ggml.unknown_token_id"]) == (2, 0)


def test_a_vocabulary_that_does_not_fit_is_refused(stories, tmp_path):
    folder, _ = stories
    model = tiny_llama()
    arguments = tmp_path / "m.gguf", model.config.to_dict(), model.state_dict().items()
    with pytest.raises(CheckpointError, match="has the id 511, but the embedding has 96 rows"):
        write_gguf(*arguments, folder)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read"):
        write_gguf(*arguments, tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["byte_fallback"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="not a BPE with byte fallback"):
        write_gguf(*arguments, folder)
