"""The Llama architecture in GGUF: metadata, and the names and row order of its tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.errors import CheckpointError

# Names in transformers and in GGUF: of whole parameters, and of the layers in a block.
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Llama:
    """Names, shapes and row order of the Llama architecture."""

    config: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Llama":
        """Raise CheckpointError for a configuration that llama.cpp would compute differently."""
        if config.get("model_type") != "llama":
            raise CheckpointError(f"model_type {config.get('model_type')!r} cannot be written to GGUF, only llama can")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise CheckpointError(
                f"rope_type {rope.get('rope_type', rope.get('type'))!r} cannot be written to GGUF, only default can: "
                "convert the folder with llama.cpp"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise CheckpointError(
                f"hidden_act {config['hidden_act']!r} cannot be written to GGUF, whose llama uses silu"
            )
        return cls(config)

    def metadata(self) -> dict[str, Any]:
        """The keys that describe the network."""
        config = self.config
        heads, width = config["num_attention_heads"], config["hidden_size"]
        head = config.get("head_dim") or width // heads
        theta = (config.get("rope_parameters") or config).get("rope_theta", 10000.0)
        return {
            "general.architecture": "llama",
            "general.name": str(config.get("_name_or_path") or "llama"),
            "general.quantization_version": 2,
            "llama.vocab_size": config["vocab_size"],
            "llama.context_length": config["max_position_embeddings"],
            "llama.embedding_length": width,
            "llama.block_count": config["num_hidden_layers"],
            "llama.feed_forward_length": config["intermediate_size"],
            "llama.attention.head_count": heads,
            "llama.attention.head_count_kv": config.get("num_key_value_heads") or heads,
            "llama.attention.key_length": head,
            "llama.attention.value_length": head,
            "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            "llama.rope.dimension_count": head,
            "llama.rope.freq_base": float(theta),
        }

    def skips(self, name: str) -> bool:
        """Whether the file omits the tensor: llama.cpp computes it, or takes it from the embedding."""
        tied = name == "lm_head.weight" and self.config.get("tie_word_embeddings", False)
        return tied or name.endswith("rotary_emb.inv_freq")

    def gguf_name(self, name: str) -> str:
        """The tensor's name in GGUF."""
        if name in WHOLE:
            return WHOLE[name]
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None or match[2] not in BLOCK or int(match[1]) >= self.config["num_hidden_layers"]:
            raise CheckpointError(
                f"{name} is not a tensor of the Llama that config.json describes: does it belong to another model?"
            )
        return f"blk.{match[1]}.{BLOCK[match[2]]}.{match[3]}"

    def row_order(self, name: str, rows: int) -> Tensor | None:
        """The row permutation: RoPE pairs are half a head apart in transformers and adjacent in GGUF."""
        match = re.search(r"self_attn\.([qk])_proj\.", name)
        if match is None:
            return None
        heads = self.config["num_attention_heads"]
        if match[1] == "k":
            heads = self.config.get("num_key_value_heads") or heads
        return torch.arange(rows).unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten()

    def check_complete(self, names: list[str]) -> None:
        """Raise CheckpointError for a missing or duplicate tensor."""
        expected = {"model.embed_tokens.weight", "model.norm.weight"}
        expected |= set() if self.skips("lm_head.weight") else {"lm_head.weight"}
        for k in range(self.config["num_hidden_layers"]):
            expected |= {f"model.layers.{k}.{layer}.weight" for layer in BLOCK}
        if missing := sorted(expected - set(names)):
            raise CheckpointError(f"{len(missing)} tensors are missing, the first is {missing[0]}: is a shard absent?")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise CheckpointError(f"{twice[0]} was given twice: pass each tensor once")
