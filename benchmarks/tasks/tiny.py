"""Sixteen architectures of the transformers package, tiny and of random weights: `tiny.py:bert` and so on."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tersor import Task

TEXT = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ROPE = TEXT | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
# class, configuration, options, inputs
NETS: dict[str, tuple[str, str, dict[str, Any], str]] = {
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


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """One of them, and the keyword arguments of a call."""
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


def task(name: str = "bert") -> Task:
    """One of them as a task; its single batch calibrates, nothing is judged."""
    model, inputs = build(name)
    return Task(name=f"{name}-tiny-random", model=model, example=inputs, calibration=lambda: [inputs])


def __getattr__(name: str) -> Any:
    """A function for each, so that the command line can name it."""
    if name in NETS:
        return partial(task, name)
    raise AttributeError(name)
