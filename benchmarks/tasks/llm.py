"""Language models for the benches: a Llama of random weights written to disk block by block, and stories260k."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

# 1.1 B parameters, of the shape of TinyLlama.
LARGE = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 128,
}  # fmt: skip


def write_llama(folder: Path, shape: dict[str, int], dtype: torch.dtype = torch.bfloat16) -> Path:
    """A Llama with normal weights of deviation 0.02; no more than a block is in memory."""
    from transformers import LlamaConfig

    folder.mkdir(parents=True)
    LlamaConfig(
        **shape, tie_word_embeddings=False, architectures=["LlamaForCausalLM"], dtype=str(dtype)[6:]
    ).save_pretrained(folder)
    generator, where = torch.Generator().manual_seed(0), {}
    wide, narrow, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    cached = wide // shape["num_attention_heads"] * shape["num_key_value_heads"]

    def drawn(*size: int) -> torch.Tensor:
        return (0.02 * torch.randn(*size, generator=generator)).to(dtype)

    def shard(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, {"format": "pt"})
        where.update(dict.fromkeys(tensors, name))

    ones = torch.ones(wide, dtype=dtype)
    for k in range(shape["num_hidden_layers"]):
        sizes = {
            "self_attn.q_proj": (wide, wide), "self_attn.k_proj": (cached, wide), "self_attn.v_proj": (cached, wide),
            "self_attn.o_proj": (wide, wide), "mlp.gate_proj": (narrow, wide), "mlp.up_proj": (narrow, wide),
            "mlp.down_proj": (wide, narrow),
        }  # fmt: skip
        block = {f"model.layers.{k}.{n}.weight": drawn(*size) for n, size in sizes.items()}
        block |= {f"model.layers.{k}.{n}.weight": ones.clone() for n in ("input_layernorm", "post_attention_layernorm")}
        shard(f"block-{k:02d}.safetensors", block)
    ends = {"model.embed_tokens.weight": drawn(vocabulary, wide), "lm_head.weight": drawn(vocabulary, wide)}
    shard("ends.safetensors", ends | {"model.norm.weight": ones})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def stories(folder: Path) -> Path:
    """The shared stories260k in the Hugging Face layout."""
    from scripts.stories260k import write

    return write(folder)
