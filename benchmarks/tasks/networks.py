"""The networks of the benchmark tasks in plain torch; their layers are named as in the weight files."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


def load(network: nn.Module, weights: Path) -> nn.Module:
    """The network in eval mode with the weights of a safetensors file; every name must fit."""
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    network.load_state_dict(counters | load_file(weights))  # the files leave BatchNorm's counters out
    return network.eval()


# ------------------------------------------------ ResNet for 32x32 pictures (arXiv 1512.03385, 4.2)
class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut has no weights: it drops pixels and adds empty channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = outputs // inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride == 2:
            empty = x.shape[1] // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, empty, empty))
        return F.relu(out + x)


class ResNetCifar(nn.Module):
    """ResNet of 6·n + 2 layers and widths 16, 32, 64: n = 3 is ResNet-20, n = 9 is ResNet-56."""

    def __init__(self, n: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16) for _ in range(n)))
        self.layer2 = nn.Sequential(BasicBlock(16, 32), *(BasicBlock(32, 32) for _ in range(n - 1)))
        self.layer3 = nn.Sequential(BasicBlock(32, 64), *(BasicBlock(64, 64) for _ in range(n - 1)))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


# ------------------------------------------------ MobileNetV2 (arXiv 1801.04381), BatchNorm folded
class Conv(nn.Module):
    """A convolution with TensorFlow's "same" padding, on even sizes, and ReLU6 unless linear."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, linear=False) -> None:
        super().__init__()
        # With stride 2, TensorFlow puts all the padding right and below.
        self.uneven = kernel == 3 and stride == 2
        padding = kernel // 2 if stride == 1 else 0
        groups = inputs if kernel == 3 and inputs == outputs else 1  # the inner 3x3 filter each channel alone
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, (0, 1, 0, 1)) if self.uneven else x)
        return x if self.linear else F.relu6(x)


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel by 3x3, narrow by 1x1."""

    def __init__(self, inputs: int, outputs: int, widen: int, stride: int) -> None:
        super().__init__()
        inner = inputs * widen
        self.expand = Conv(inputs, inner) if widen > 1 else nn.Identity()
        self.depthwise = Conv(inner, inner, 3, stride)
        self.project = Conv(inner, outputs, linear=True)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """Width 1.0 for pictures of 224x224."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = Conv(3, 32, 3, 2)
        widths = [16] + 2 * [24] + 3 * [32] + 4 * [64] + 3 * [96] + 3 * [160] + [320]
        halving = {1, 3, 6, 13}  # the blocks that halve the picture
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(inputs, outputs, 1 if k == 0 else 6, 2 if k in halving else 1)
                for k, (inputs, outputs) in enumerate(zip([32, *widths], widths, strict=False))
            )
        )
        self.head = Conv(320, 1280)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


# ------------------------------------------------ SqueezeNet 1.1 (arXiv 1602.07360)
class Fire(nn.Module):
    """1x1 down to few channels, then 1x1 and 3x3 side by side."""

    def __init__(self, inputs: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, narrow, 1)
        self.expand1x1 = nn.Conv2d(narrow, wide, 1)
        self.expand3x3 = nn.Conv2d(narrow, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat((self.expand1x1(x), self.expand3x3(x)), dim=1))


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 for pictures of 224x224; its scores are means of a last convolution."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 2)
        self.fire2, self.fire3 = Fire(64, 16, 64), Fire(128, 16, 64)
        self.fire4, self.fire5 = Fire(128, 32, 128), Fire(256, 32, 128)
        self.fire6, self.fire7 = Fire(256, 48, 192), Fire(384, 48, 192)
        self.fire8, self.fire9 = Fire(384, 64, 256), Fire(512, 64, 256)
        self.conv10 = nn.Conv2d(512, classes, 1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(self.fire3(self.fire2(x)))
        x = self.pool(self.fire5(self.fire4(x)))
        x = self.fire9(self.fire8(self.fire7(self.fire6(x))))
        return F.adaptive_avg_pool2d(F.relu(self.conv10(x)), 1).flatten(1)
