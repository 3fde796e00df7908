"""Networks of the transformers package, tiny and of random weights, compressed as they come."""

import pytest
import torch
from agreement import check
from zoo import Builder


def _hugging_face(kind: str, shape: tuple[int, ...], **options: object) -> Builder:
    def build() -> tuple[torch.nn.Module, tuple[int, ...]]:
        import transformers

        name, _, what = kind.partition("For")
        config = getattr(transformers, f"{name}Config")(num_labels=5, **options)
        return getattr(transformers, f"{name}For{what}")(config), shape

    return build


_SMALL = (3, 32, 32)


def _mobilenet() -> tuple[torch.nn.Module, tuple[int, ...]]:
    """Without most of the repeated blocks: over 52 layers of random weights the roundings grow to two thirds."""
    whole = _hugging_face("MobileNetV2ForImageClassification", _SMALL, image_size=32, depth_multiplier=0.25)
    model, shape = whole()
    blocks = model.mobilenet_v2.layer
    model.mobilenet_v2.layer = torch.nn.ModuleList(b for k, b in enumerate(blocks) if k < 3 or not b.use_residual)
    return model, shape


HUGGING_FACE: dict[str, Builder] = {
    "resnet": _hugging_face(
        "ResNetForImageClassification",
        _SMALL,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        layer_type="basic",
    ),
    "mobilenetv2": _mobilenet,
    "convnext": _hugging_face(
        "ConvNextForImageClassification", _SMALL, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2
    ),
    "segformer": _hugging_face(
        "SegformerForSemanticSegmentation",
        (3, 64, 64),
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 2],
        decoder_hidden_size=16,
    ),
    "efficientnet": _hugging_face(
        "EfficientNetForImageClassification",
        _SMALL,
        image_size=32,
        in_channels=[32, 16],
        out_channels=[16, 24],
        kernel_sizes=[3, 3],
        strides=[1, 2],
        num_block_repeats=[1, 1],
        expand_ratios=[1, 4],
        hidden_dim=1280,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        depthwise_padding=[],
    ),
    "vit": _hugging_face(
        "ViTForImageClassification",
        _SMALL,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    ),
    "swin": _hugging_face(
        "SwinForImageClassification",
        _SMALL,
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
    ),
    "regnet": _hugging_face(
        "RegNetForImageClassification", _SMALL, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4
    ),
}
# Still three times as deep as the others.
ERROR = {"mobilenetv2": 0.25}


@pytest.mark.slow
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_transformers(name):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    check(*HUGGING_FACE[name](), error=ERROR.get(name, 0.08))
