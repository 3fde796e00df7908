"""Networks at their published depth, of random weights: `published.py:resnet50` and so on; small inputs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import published_classifiers as classifiers
import published_pictures as pictures
import published_sequences as sequences
import torch
from torch import Tensor, nn

from tersor import Task

IMAGE = (torch.Size((2, 3, 64, 64)),)
Sizes = tuple[torch.Size, ...]


def transformer(kind: str, configuration: str, **options: Any) -> Callable[[], nn.Module]:
    """A class of the transformers package; its configuration holds the published sizes unless options change them."""

    def made() -> nn.Module:
        import transformers

        return getattr(transformers, kind)(getattr(transformers, configuration)(**options))

    return made


def pictures_of(name: str, configuration: str = "", **options: Any) -> Callable[[], nn.Module]:
    """One for pictures."""
    return transformer(f"{name}ForImageClassification", configuration or f"{name}Config", **options)


NETS: dict[str, tuple[Callable[[], nn.Module], Sizes]] = {
    "resnet50": (pictures_of("ResNet"), IMAGE),
    "vgg16": (classifiers.vgg16, IMAGE),
    "mobilenetv2": (pictures_of("MobileNetV2"), IMAGE),
    "mobilenetv3": (classifiers.mobilenetv3, IMAGE),
    "efficientnet": (
        pictures_of("EfficientNet", width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, image_size=64),
        IMAGE,
    ),
    "shufflenetv1": (classifiers.shufflenetv1, IMAGE),
    "shufflenetv2": (classifiers.shufflenetv2, IMAGE),
    "densenet121": (classifiers.densenet121, IMAGE),
    "unet": (pictures.UNet, IMAGE),
    "yolo": (pictures.Yolo, IMAGE),
    "deeplabv3": (pictures.DeepLab, IMAGE),
    "espcn": (pictures.espcn, (torch.Size((2, 3, 32, 32)),)),
    "wavenet": (sequences.WaveNet, (torch.Size((2, 256, 128)),)),
    "crnn": (sequences.Crnn, (torch.Size((2, 1, 32, 64)),)),
    "conformer": (sequences.Recognizer, (torch.Size((2, 64, 80)),)),
    "vit": (pictures_of("ViT", image_size=64), IMAGE),
    "swin": (pictures_of("Swin"), (torch.Size((2, 3, 224, 224)),)),
    "convnext": (pictures_of("ConvNext"), IMAGE),
    "bert": (transformer("BertModel", "BertConfig"), ()),
}
"""How each is made, and the sizes of its inputs; none: two rows of tokens."""


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """One of them, and the arguments of a call; statistics and scales of norms differ from channel to channel."""
    make, shapes = NETS[name]
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            for values, low, high in (
                (module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5), (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
            ):  # fmt: skip
                nn.init.uniform_(values, low, high)  # type: ignore[arg-type]
    inputs = tuple(torch.randn(shape) for shape in shapes)
    return model, inputs or (torch.arange(256).reshape(2, 128),)


def task(name: str = "resnet50") -> Task:
    """One of them as a task; its single batch calibrates, nothing is judged."""
    model, inputs = build(name)
    return Task(name=f"{name}-random", model=model, example=inputs, calibration=lambda: [inputs])


def __getattr__(name: str) -> Any:
    """A function for each, so that the command line can name it."""
    if name in NETS:
        return partial(task, name)
    raise AttributeError(name)
