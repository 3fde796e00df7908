"""The shared stories260k network as a folder in the Hugging Face layout: ``python scripts/stories260k.py OUT``.

It is a trained Llama of 0.26 M parameters (TinyStories): small enough for tests, real enough for figures.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

SOURCE = Path(__file__).parents[1] / "../shared/data/stories260k"
_LAYERS, _HEADS, _KV_HEADS, _WIDTH, _HIDDEN = 5, 8, 4, 64, 172
_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def write(folder: Path, source: Path = SOURCE) -> Path:
    """Write config.json, model.safetensors (float32) and the tokenizer into ``folder``; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=_WIDTH,
        intermediate_size=_HIDDEN,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_KV_HEADS,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    config.save_pretrained(folder)
    save_file(_weights(load_file(source / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    tokenizer(json.loads((source / "tok512.json").read_text())).save_pretrained(folder)
    return folder


def _weights(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {"model.embed_tokens.weight": ours["embed.weight"], "model.norm.weight": ours["norm.weight"]}
    for k in range(_LAYERS):
        for old, new in _NAMES.items():
            weight = ours[f"layers.{k}.{old}.weight"]
            if old in ("q", "k"):
                weight = _half_split(weight, _HEADS if old == "q" else _KV_HEADS)
            found[f"model.layers.{k}.{new}.weight"] = weight.contiguous()
    return found


def _half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows that rotate together stand side by side here, half a head apart in Hugging Face's Llama."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def tokenizer(table: list[dict]) -> PreTrainedTokenizerFast:
    """The 512 pieces as a fast tokenizer: a merge's rank is that of its piece's score."""
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    pieces = names + [e["piece"].encode("latin1").decode().replace(" ", "▁") for e in table[len(names) :]]
    ids: dict[str, int] = {}
    for i, piece in enumerate(pieces):
        ids.setdefault(piece, i)
    ranked = sorted(range(len(names), len(pieces)), key=lambda i: (-table[i]["score"], i))
    merges = [
        (whole[:k], whole[k:])
        for whole in (pieces[i] for i in ranked)
        for k in range(1, len(whole))
        if whole[:k] in ids and whole[k:] in ids
    ]
    bpe = Tokenizer(BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    print(write(Path(sys.argv[1])))
