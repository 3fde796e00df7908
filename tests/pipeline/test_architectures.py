"""Sixteen architectures of the transformers package, tiny and of random weights, quantized without a word."""

import pytest
import torch

import tersor
from tersor.network.quantized import Quantized, QuantizedLinear

TEXT = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ROPE = TEXT | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
# class, configuration, options, inputs
NETS = {
    "bert": ("BertModel", "BertConfig", TEXT | {"intermediate_size": 64}, "ids"),
    "llama": ("LlamaForCausalLM", "LlamaConfig", ROPE, "ids"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", ROPE, "ids"),
    "opt": ("OPTForCausalLM", "OPTConfig", TEXT | {"ffn_dim": 64, "word_embed_proj_dim": 32}, "ids"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}, "ids"),
    "t5": (
        "T5EncoderModel",
        "T5Config",
        {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        "ids",
    ),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32},
        "picture",
    ),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        "picture",
    ),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
        "picture",
    ),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "picture",
    ),
    "mobilenetv2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.25}, "picture"),
    "efficientnet": (
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
        "picture",
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {"hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4, "decoder_hidden_size": 16},
        "picture",
    ),
    "wav2vec2": (
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        TEXT | {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
        "sound",
    ),
    "whisper": (
        "WhisperModel",
        "WhisperConfig",
        {
            "vocab_size": 100, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 50,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
        },
        "speech",
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", ROPE | {"num_local_experts": 4}, "ids"),
}  # fmt: skip


def build(name):
    import transformers

    kind, configuration, options, inputs = NETS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, configuration)(**options)).eval()
    ids = torch.arange(20).reshape(2, 10)
    return model, {
        "ids": {"input_ids": ids},
        "picture": {"pixel_values": torch.randn(2, 3, 32, 32)},
        "sound": {"input_values": torch.randn(2, 2000)},
        "speech": {"input_features": torch.randn(2, 80, 100), "decoder_input_ids": ids},
    }[inputs]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_it_is_taken_as_it_comes(name):
    model, inputs = build(name)
    small = tersor.quantize_dynamic(model)
    assert type(small) is type(model)
    assert any(isinstance(m, Quantized) for m in small.modules())
    linear = [e for e in tersor.dynamic_plan(model) if e.holder.op == "linear"]
    assert all(e.weights is not None for e in linear), [str(e) for e in linear if e.weights is None]
    with torch.no_grad():
        exact, ours = (m(**inputs)[0] for m in (model, small))
    # In float64: random weights let the activations of some networks vanish.
    assert float((ours - exact).double().norm()) <= 0.1 * float(exact.double().norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generate_goes_on_working(name):
    model, inputs = build(name)
    small = tersor.quantize_dynamic(model)
    ids = inputs["input_ids"][:1]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    assert small.generate(ids, **options).shape == model.generate(ids, **options).shape
    assert any(isinstance(m, QuantizedLinear) for m in small.modules())
