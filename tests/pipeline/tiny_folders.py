"""Folders of tiny models of transformers with random weights of usual size, and what transformers makes of them."""

import json

import torch
import transformers as t

LM = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 48, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
ENCODER = {k: v for k, v in LM.items() if k not in ("num_key_value_heads", "bos_token_id", "eos_token_id")}
NARROW = {"vocab_size": 48, "n_layer": 2, "n_head": 4}
T5 = {"vocab_size": 48, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
TOKENS = torch.randint(3, 47, (12, 16), generator=torch.Generator().manual_seed(1))

MODELS = {
    "llama": lambda **k: t.LlamaForCausalLM(t.LlamaConfig(**LM | k)),
    "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(**NARROW, hidden_size=32)),
    "mpt": lambda: t.MptForCausalLM(t.MptConfig(vocab_size=48, d_model=32, n_layers=2, n_heads=4, max_seq_len=64)),
    "gpt_neo": lambda: t.GPTNeoForCausalLM(
        t.GPTNeoConfig(vocab_size=48, hidden_size=32, num_layers=2, num_heads=4, window_size=4,
                       attention_types=[[["global", "local"], 1]], max_position_embeddings=64)
    ),
    "falcon": lambda: t.FalconForCausalLM(
        t.FalconConfig(vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    ),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**LM, head_dim=8)),
    "gpt_oss": lambda: t.GptOssForCausalLM(
        t.GptOssConfig(**LM, head_dim=8, num_local_experts=4, num_experts_per_tok=2)
    ),
    "mamba": lambda: t.MambaForCausalLM(
        t.MambaConfig(vocab_size=48, hidden_size=32, num_hidden_layers=2, state_size=8)
    ),
    "rwkv": lambda: t.RwkvForCausalLM(
        t.RwkvConfig(vocab_size=48, hidden_size=32, num_hidden_layers=3, attention_hidden_size=32,
                     intermediate_size=64, context_length=64, rescale_every=1)
    ),
    "deberta": lambda: t.DebertaModel(t.DebertaConfig(**ENCODER, **DISENTANGLED, max_relative_positions=16)),
    "deberta_v2": lambda: t.DebertaV2Model(t.DebertaV2Config(**ENCODER, **DISENTANGLED, conv_kernel_size=3)),
    "xlnet": lambda: t.XLNetLMHeadModel(
        t.XLNetConfig(vocab_size=48, d_model=32, n_layer=2, n_head=4, d_inner=64)
    ),
    "t5": lambda: t.T5EncoderModel(t.T5Config(**T5, feed_forward_proj="gated-gelu")),
    "t5_both": lambda: t.T5ForConditionalGeneration(t.T5Config(**T5)),
    "qwen2_moe": lambda: t.Qwen2MoeForCausalLM(
        t.Qwen2MoeConfig(**LM, **EXPERTS, moe_intermediate_size=16, shared_expert_intermediate_size=32)
    ),
    "olmoe": lambda: t.OlmoeForCausalLM(t.OlmoeConfig(**LM, **EXPERTS)),
    "granite_moe": lambda: t.GraniteMoeForCausalLM(
        t.GraniteMoeConfig(**LM, num_local_experts=4, num_experts_per_tok=2)
    ),
    "jamba": lambda: t.JambaForCausalLM(
        t.JambaConfig(**LM, **EXPERTS, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
                      expert_layer_offset=1, use_mamba_kernels=False, mamba_d_state=8)
    ),
    "qwen3_vl_moe": lambda: t.Qwen3VLMoeForConditionalGeneration(
        t.Qwen3VLMoeConfig(
            text_config=LM | EXPERTS | {"head_dim": 8, "moe_intermediate_size": 16, "rope_scaling": {
                "rope_type": "default", "mrope_section": [2, 1, 1]}},
            vision_config={"depth": 3, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "patch_size": 14,
                           "intermediate_size": 32, "deepstack_visual_indexes": [0]},
        )
    ),
    "switch": lambda: t.SwitchTransformersEncoderModel(
        t.SwitchTransformersConfig(**T5 | {"num_layers": 2}, num_experts=4, num_sparse_encoder_layers=1)
    ),
    "llama4": lambda: t.Llama4ForCausalLM(
        t.Llama4TextConfig(**LM | {"intermediate_size": 32}, intermediate_size_mlp=64, num_local_experts=4,
                           num_experts_per_tok=1, head_dim=8, interleave_moe_layer_step=2)
    ),
    "paligemma": lambda: t.PaliGemmaForConditionalGeneration(
        t.PaliGemmaConfig(text_config=t.GemmaConfig(**LM, head_dim=8), image_token_index=47, projection_dim=32,
                          vision_config=t.SiglipVisionConfig(**TOWER, num_hidden_layers=3))
    ),
    "clip": lambda: t.CLIPModel(
        t.CLIPConfig(text_config=ENCODER | {"max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2},
                     vision_config=TOWER | {"num_hidden_layers": 3})
    ),
    "openai_gpt": lambda: t.OpenAIGPTLMHeadModel(t.OpenAIGPTConfig(**NARROW, n_embd=32, n_positions=64)),
}  # fmt: skip


def written(path, model, **edits):
    """The folder of a model, its config.json edited."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                size = 1 if "embed" in name or "shared" in name else p.shape[-1] ** -0.5
                p.copy_(torch.randn(p.shape, generator=generator) * size)
    model.eval().save_pretrained(path)
    config = json.loads((path / "config.json").read_text()) | edits
    (path / "config.json").write_text(json.dumps(config))
    return path


@torch.no_grad()
def said(model):
    """What a model says about some tokens."""
    return model.eval()(input_ids=TOKENS[:2])[0]


def distance(got, wanted):
    return float((got - wanted).double().norm() / wanted.double().norm())
