"""Classifiers of pictures at their published depth and widths, in plain torch with random weights."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = Callable[[], nn.Module]


def unit(inputs: int, outputs: int, size: int = 1, act: Layer | None = nn.ReLU, **options: Any) -> nn.Sequential:
    """Convolution, BatchNorm, activation."""
    dilation = options.get("dilation", 1)
    options = {"padding": dilation * (size // 2), "bias": False} | options
    layers = [nn.Conv2d(inputs, outputs, size, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([act()] if act else []))


def depthwise(channels: int, size: int, act: Layer | None = None, **options: Any) -> nn.Sequential:
    """The same, each channel by itself."""
    return unit(channels, channels, size, act, groups=channels, **options)


def classifier(body: nn.Module, channels: int, classes: int = 1000) -> nn.Sequential:
    """A body, means over places, a linear layer."""
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def eighths(width: float) -> int:
    """The nearest multiple of 8, not 10 % below the width.

    >>> eighths(18), eighths(22)
    (24, 24)
    """
    found = max(8, int(width + 4) // 8 * 8)
    return found if found >= 0.9 * width else found + 8


# ------------------------------------------------ MobileNetV3-Large (arXiv 1905.02244, table 1)
class Excite(nn.Module):
    """Squeeze and excite with a hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = eighths(channels / 4)
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """Expand, filter each channel, excite, project."""

    def __init__(self, x: int, size: int, wide: int, y: int, excite: bool, act: Layer, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *([unit(x, wide, act=act)] if wide != x else []), depthwise(wide, size, act, stride=stride),
            *([Excite(wide)] if excite else []), unit(wide, y, act=None),
        )  # fmt: skip
        self.shortcut = stride == 1 and x == y

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


# kernel, expanded, output, excite, hard-swish, stride
V3_LARGE = [
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
]  # fmt: skip


def mobilenetv3() -> nn.Module:
    """MobileNetV3-Large."""
    layers, inputs = [unit(3, 16, 3, nn.Hardswish, stride=2)], 16
    for size, wide, outputs, excite, hard, stride in V3_LARGE:
        act = nn.Hardswish if hard else nn.ReLU
        layers.append(Inverted(inputs, size, wide, outputs, bool(excite), act, stride))  # type: ignore[arg-type]
        inputs = outputs
    layers.append(unit(160, 960, act=nn.Hardswish))
    head = nn.Linear(960, 1280), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1280, 1000)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


# ------------------------------------------------ ShuffleNet (arXiv 1707.01083), ShuffleNetV2 (arXiv 1807.11164)
def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels of all groups in turn."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleV1(nn.Module):
    """Grouped 1x1 convolutions with a shuffle between; with a stride the shortcut is a joined mean."""

    def __init__(self, x: int, y: int, groups: int, stride: int, first: bool = False) -> None:
        super().__init__()
        inner, self.groups, self.stride = y // 4, groups, stride
        outputs = y - x if stride == 2 else y
        self.narrow = unit(x, inner, groups=1 if first else groups)
        self.filter = depthwise(inner, 3, stride=stride)
        self.widen = unit(inner, outputs, act=None, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = self.widen(self.filter(shuffled(self.narrow(x), self.groups)))
        return F.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1), y), 1) if self.stride == 2 else x + y)


def shufflenetv1() -> nn.Module:
    """ShuffleNet 1x with 3 groups."""
    layers, inputs = [unit(3, 24, 3, stride=2), nn.MaxPool2d(3, 2, 1)], 24
    for outputs, count in ((240, 4), (480, 8), (960, 4)):
        for k in range(count):
            layers.append(ShuffleV1(inputs, outputs, 3, 1 if k else 2, first=inputs == 24))
            inputs = outputs
    return classifier(nn.Sequential(*layers), 960)


class ShuffleV2(nn.Module):
    """Half of the channels passes; with a stride all go both ways."""

    def __init__(self, x: int, y: int, stride: int) -> None:
        super().__init__()
        half = y // 2
        self.other = None
        if stride == 2:
            self.other = nn.Sequential(depthwise(x, 3, stride=2), unit(x, half))
        x = x if stride == 2 else half
        self.body = nn.Sequential(unit(x, half), depthwise(half, 3, stride=stride), unit(half, half))

    def forward(self, x: Tensor) -> Tensor:
        if self.other is None:
            kept, changed = x.chunk(2, 1)
            return shuffled(torch.cat((kept, self.body(changed)), 1), 2)
        return shuffled(torch.cat((self.other(x), self.body(x)), 1), 2)


def shufflenetv2() -> nn.Module:
    """ShuffleNetV2 1x."""
    layers, inputs = [unit(3, 24, 3, stride=2), nn.MaxPool2d(3, 2, 1)], 24
    for outputs, count in ((116, 4), (232, 8), (464, 4)):
        for k in range(count):
            layers.append(ShuffleV2(inputs, outputs, 1 if k else 2))
            inputs = outputs
    return classifier(nn.Sequential(*layers, unit(464, 1024)), 1024)


# ------------------------------------------------ DenseNet-121 (arXiv 1608.06993)
class DenseLayer(nn.Module):
    """32 new channels from all before."""

    def __init__(self, inputs: int, growth: int = 32) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat((x, y), 1)


def densenet121() -> nn.Module:
    """Growth 32, blocks of 6, 12, 24 and 16 layers."""
    layers, width = [unit(3, 64, 7, stride=2), nn.MaxPool2d(3, 2, 1)], 64
    for count in (6, 12, 24, 16):
        layers += [DenseLayer(width + 32 * k) for k in range(count)]
        width += 32 * count
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if count != 16:
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return classifier(nn.Sequential(*layers), width)


# ------------------------------------------------ VGG-16 with its flatten and three linear layers (arXiv 1409.1556)
def vgg16(places: int = 2) -> nn.Module:
    """Five stages; the last pictures of ``places``² are flattened."""
    layers: list[nn.Module] = []
    for x, y, count in ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3)):
        widths = [x, *[y] * count]
        layers += [m for a, b in pairwise(widths) for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
        layers.append(nn.MaxPool2d(2))
    head = nn.Linear(512 * places**2, 1024), nn.ReLU(), nn.Dropout(), nn.Linear(1024, 1000)
    return nn.Sequential(*layers, nn.Flatten(), *head)
