"""Networks that return pictures or boxes, at their published depth: U-Net, a YOLO, DeepLabV3, ESPCN."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from published_classifiers import unit
from torch import Tensor, nn


# ------------------------------------------------ U-Net (arXiv 1505.04597)
def double(x: int, y: int) -> nn.Sequential:
    """Two 3x3 convolutions."""
    return nn.Sequential(unit(x, y, 3), unit(y, y, 3))


class UNet(nn.Module):
    """Four levels down and up; the published widths are 64 to 1024."""

    def __init__(self, width: int = 32, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(5)]
        self.first = double(3, width)
        self.downs = nn.ModuleList(double(a, 2 * a) for a in widths[:-1])
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * a, a, 2, 2) for a in reversed(widths[:-1]))
        self.joins = nn.ModuleList(double(2 * a, a) for a in reversed(widths[:-1]))
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.first(x)]
        for down in self.downs:
            found.append(down(F.max_pool2d(found[-1], 2)))
        x = found.pop()
        for up, join in zip(self.ups, self.joins, strict=True):
            x = join(torch.cat((found.pop(), up(x)), 1))
        return self.last(x)


# ------------------------------------------------ ResNet-50 with dilated last stages, DeepLabV3 (arXiv 1706.05587)
class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 beside a shortcut."""

    def __init__(self, x: int, mid: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        y = 4 * mid
        self.body = nn.Sequential(
            unit(x, mid), unit(mid, mid, 3, stride=stride, dilation=dilation), unit(mid, y, act=None)
        )
        self.shortcut = unit(x, y, act=None, stride=stride) if x != y or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.body(x))


def resnet50(strides: Sequence[int] = (1, 2, 2, 2), dilations: Sequence[int] = (1, 1, 1, 1)) -> nn.Sequential:
    """Its convolutions."""
    layers, x = [unit(3, 64, 7, stride=2), nn.MaxPool2d(3, 2, 1)], 64
    for mid, count, stride, dilation in zip((64, 128, 256, 512), (3, 4, 6, 3), strides, dilations, strict=True):
        for k in range(count):
            layers.append(Bottleneck(x, mid, 1 if k else stride, dilation))
            x = 4 * mid
    return nn.Sequential(*layers)


class DeepLab(nn.Module):
    """Atrous branches at rates 6, 12 and 18 and a pooled one, 256 channels each."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        self.body = resnet50((1, 2, 1, 1), (1, 1, 2, 4))
        self.branches = nn.ModuleList([unit(2048, 256), *(unit(2048, 256, 3, dilation=d) for d in (6, 12, 18))])
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), unit(2048, 256))
        self.last = nn.Sequential(unit(1280, 256), nn.Dropout(), unit(256, 256, 3), nn.Conv2d(256, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        pooled = F.interpolate(self.pooled(y), size=y.shape[-2:], mode="bilinear", align_corners=False)
        y = self.last(torch.cat([*(b(y) for b in self.branches), pooled], 1))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


# ------------------------------------------------ a YOLO of the kind v8n: C2f, SPPF, three scales, decoupled heads
def act(x: int, y: int, size: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, SiLU."""
    return unit(x, y, size, nn.SiLU, stride=stride)


class C2f(nn.Module):
    """Half of the channels passes through blocks one after another; all that was found is joined."""

    def __init__(self, x: int, y: int, count: int, shortcut: bool) -> None:
        super().__init__()
        half, self.shortcut = y // 2, shortcut
        self.first, self.last = act(x, y), act((2 + count) * half, y)
        self.blocks = nn.ModuleList(nn.Sequential(act(half, half, 3), act(half, half, 3)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        found = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            y = block(found[-1])
            found.append(found[-1] + y if self.shortcut else y)
        return self.last(torch.cat(found, 1))


class Sppf(nn.Module):
    """Pools of pools, joined."""

    def __init__(self, x: int) -> None:
        super().__init__()
        self.first, self.last = act(x, x // 2), act(2 * x, x)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.first(x)]
        for _ in range(3):
            found.append(F.max_pool2d(found[-1], 5, 1, 2))
        return self.last(torch.cat(found, 1))


class Yolo(nn.Module):
    """Backbone, paths up and down, boxes as expected distances in 16 bins, 80 classes."""

    def __init__(self, classes: int = 80, bins: int = 16) -> None:
        super().__init__()
        a, b, c, d = 32, 64, 128, 256
        self.bins, self.classes = bins, classes
        self.fine = nn.Sequential(act(3, 16, 3, 2), act(16, a, 3, 2), C2f(a, a, 1, True),
                                  act(a, b, 3, 2), C2f(b, b, 2, True))  # fmt: skip
        self.middle = nn.Sequential(act(b, c, 3, 2), C2f(c, c, 2, True))
        self.coarse = nn.Sequential(act(c, d, 3, 2), C2f(d, d, 1, True), Sppf(d))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.up1, self.up2 = C2f(c + d, c, 1, False), C2f(b + c, b, 1, False)
        self.down1, self.down2 = act(b, b, 3, 2), act(c, c, 3, 2)
        self.join1, self.join2 = C2f(b + c, c, 1, False), C2f(c + d, d, 1, False)
        widths = (b, c, d)
        self.boxes = nn.ModuleList(
            nn.Sequential(act(x, 64, 3), act(64, 64, 3), nn.Conv2d(64, 4 * bins, 1)) for x in widths
        )
        self.names = nn.ModuleList(
            nn.Sequential(act(x, 80, 3), act(80, 80, 3), nn.Conv2d(80, classes, 1)) for x in widths
        )
        self.register_buffer("steps", torch.arange(bins).float().view(1, bins, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        middle = self.up1(torch.cat((self.up(coarse), middle), 1))
        fine = self.up2(torch.cat((self.up(middle), fine), 1))
        middle = self.join1(torch.cat((self.down1(fine), middle), 1))
        coarse = self.join2(torch.cat((self.down2(middle), coarse), 1))
        scales = zip(self.boxes, self.names, (fine, middle, coarse), strict=True)
        joined = torch.cat([torch.cat((box(y), name(y)), 1).flatten(2) for box, name, y in scales], 2)
        boxes, names = joined.split((4 * self.bins, self.classes), 1)
        b, _, n = boxes.shape
        shares = boxes.view(b, 4, self.bins, n).transpose(2, 1).softmax(1)
        return torch.cat(((shares * self.steps).sum(1), names.sigmoid()), 1)


# ------------------------------------------------ ESPCN (arXiv 1609.05158)
def espcn(factor: int = 3) -> nn.Module:
    """A picture ``factor`` times as large."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh(),
        nn.Conv2d(32, 3 * factor**2, 3, padding=1), nn.PixelShuffle(factor),
    )  # fmt: skip
