"""Small networks whose channels are tied in every way that groups know: name, network, example."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int = 3, act: type[nn.Module] = nn.ReLU, **options: Any) -> nn.Sequential:
    options = {"padding": size // 2} | options
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, bias=False, **options), nn.BatchNorm2d(outputs), act())


class Sum(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = nn.Sequential(*body), shortcut or nn.Identity()
        self.act = act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.body(x))


class Excite(nn.Module):
    """Squeeze and excite, by 1x1 convolutions or linear layers."""

    def __init__(self, channels: int, linear: bool = False) -> None:
        super().__init__()
        self.linear = linear
        layer = nn.Linear if linear else lambda a, b: nn.Conv2d(a, b, 1)
        self.down, self.up = layer(channels, channels // 2), layer(channels // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        found = F.hardsigmoid(self.up(F.relu(self.down(means))))
        return x * (found.view(*found.shape, 1, 1) if self.linear else found)


def head(channels: int, body: nn.Module) -> nn.Sequential:
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def bottleneck(x: int, mid: int, groups: int = 1) -> nn.Module:
    return Sum(conv(x, mid, 1), conv(mid, mid, groups=groups), conv(mid, x, 1))


class Padded(nn.Module):
    """The shortcut of the first ResNets on CIFAR-10: every second pixel, channels filled up with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv(3, 8), nn.Sequential(conv(8, 16, stride=2), nn.Conv2d(16, 16, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.relu(self.body(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))).mean((2, 3))


class Inverted(nn.Module):
    """MobileNetV3: expand, depthwise, excite, project."""

    def __init__(self) -> None:
        super().__init__()
        wide = nn.Sequential(conv(8, 32, 1, nn.Hardswish), conv(32, 32, 5, nn.Hardswish, groups=32), Excite(32))
        self.net = head(12, nn.Sequential(conv(3, 8), Sum(wide, nn.Conv2d(32, 8, 1)), conv(8, 12)))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Shuffle(nn.Module):
    """ShuffleNetV2: half of the channels passes, then all are shuffled."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        half = channels // 2
        self.stem = conv(3, channels)
        self.branch = nn.Sequential(conv(half, half, 1), conv(half, half, groups=half), conv(half, half, 1))
        self.last = nn.Conv2d(channels, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = self.stem(x).chunk(2, dim=1)
        x = torch.cat((kept, self.branch(changed)), 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.last(x).mean((2, 3))


class Dense(nn.Module):
    """DenseNet: each layer reads all that came before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, 16, 1), nn.BatchNorm2d(16), nn.ReLU(),
                          nn.Conv2d(16, 4, 3, padding=1))
            for w in (8, 12, 16)
        )  # fmt: skip
        self.end = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2))
        self.fc = nn.Linear(10 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.fc(self.end(torch.cat(found, 1)).flatten(1))


class UNet(nn.Module):
    """Down, up by a transposed convolution, beside what it came from; group and instance norms."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU())
        self.b = nn.Sequential(
            nn.Conv2d(8, 16, 3, padding=1), nn.InstanceNorm2d(16, affine=True), nn.LeakyReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.GELU(),
        )  # fmt: skip
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.c = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1), nn.PReLU(12), nn.Conv2d(12, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.a(x)
        return self.c(torch.cat((wide, self.up(self.b(F.max_pool2d(wide, 2)))), 1))


class Yolo(nn.Module):
    """C2f and a head of several scales: chunks of a layer's channels, sums and joins of them, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = conv(3, 16, act=nn.SiLU), conv(16, 16, 1, nn.SiLU)
        self.m = nn.ModuleList(Sum(conv(8, 8, act=nn.SiLU), conv(8, 8, act=nn.SiLU)) for _ in range(2))
        self.last = conv(32, 16, 1, nn.SiLU)
        self.down = conv(16, 24, act=nn.SiLU, stride=2)
        self.heads = nn.ModuleList((nn.Conv2d(40, 9, 1), nn.Conv2d(24, 9, 1)))

    def forward(self, x: Tensor) -> Any:
        parts = list(self.first(self.stem(x)).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        fine = self.last(torch.cat(parts, 1))
        coarse = self.down(fine)
        fine = torch.cat((fine, F.interpolate(coarse, scale_factor=2.0, mode="nearest")), 1)
        outs = [layer(v).flatten(2) for layer, v in zip(self.heads, (fine, coarse), strict=True)]
        return torch.cat(outs, 2).split((4, 5), 1)


class DeepLab(nn.Module):
    """Atrous branches and a pooled one, joined and brought to the picture's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.branches = nn.ModuleList(conv(12, 6, dilation=d, padding=d) for d in (1, 2, 3))
        self.pooled, self.last = nn.Conv2d(12, 6, 1), nn.Sequential(conv(24, 8, 1), nn.Dropout(), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        pooled = self.pooled(y.mean((2, 3), keepdim=True))
        pooled = F.interpolate(pooled, size=y.shape[2:], mode="bilinear", align_corners=False)
        y = self.last(torch.cat([*(b(y) for b in self.branches), pooled], 1))
        return F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)


class Espcn(nn.Module):
    """Channels that become pixels, in the middle and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 5, padding=2), nn.Conv2d(16, 24, 3, padding=1)
        self.c, self.d = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(torch.tanh(self.b(torch.tanh(self.a(x)))), 2)
        return F.pixel_shuffle(self.d(torch.tanh(self.c(x))), 2)


class WaveNet(nn.Module):
    """Gated dilated convolutions, a residual and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 8, 1)
        self.gates = nn.ModuleList(nn.Conv1d(8, 24, 2, dilation=d) for d in (1, 2))
        self.outs = nn.ModuleList(nn.Conv1d(12, 18, 1) for _ in range(2))
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(10, 14, 1), nn.ReLU(), nn.Conv1d(14, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.stem(x), torch.zeros(1)
        for d, (gate, out) in enumerate(zip(self.gates, self.outs, strict=True), 1):
            a, b = gate(F.pad(x, (d, 0))).split(12, 1)
            found = out(torch.tanh(a) * torch.sigmoid(b))
            x, skips = x + found[:, :8], skips + found[:, 8:]
        return self.last(skips)


class Crnn(nn.Module):
    """Convolutions, columns as steps of a recurrent network."""

    def __init__(self, kind: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), conv(8, 12))
        self.rnn = kind(12 * 4, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).permute(0, 3, 1, 2).flatten(2)
        return self.fc(self.rnn(x)[0]).log_softmax(-1)


class Attention(nn.Module):
    """Heads from one product or three, grouped queries, a bias of positions, scores by hand or fused."""

    def __init__(self, *, fused: bool, keys: int = 4, by_hand: bool = False, chunk: bool = False) -> None:
        super().__init__()
        self.h, self.keys, self.d, self.by_hand, self.chunk = 4, keys, 6, by_hand, chunk
        self.norm, self.qkv = nn.LayerNorm(16), nn.Linear(16, 3 * 24) if fused else None
        if not fused:
            self.q, self.k, self.v = nn.Linear(16, 24), nn.Linear(16, 6 * keys), nn.Linear(16, 6 * keys)
        self.o = nn.Linear(24, 16)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 16))
        self.bias = nn.Parameter(torch.randn(4, 5, 5))
        self.scale = nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.norm(x)
        if self.qkv is None:
            q, k, v = (f(y).view(b, n, -1, self.d).transpose(1, 2) for f in (self.q, self.k, self.v))
        elif self.chunk:
            q, k, v = (t.reshape(b, n, self.h, self.d).transpose(1, 2) for t in self.qkv(y).chunk(3, -1))
        else:
            q, k, v = self.qkv(y).view(b, n, 3, self.h, self.d).permute(2, 0, 3, 1, 4).unbind(0)
        if self.keys != self.h:
            k, v = (t[:, :, None].expand(b, self.keys, 2, n, self.d).reshape(b, 4, n, self.d) for t in (k, v))
        if self.by_hand:
            y = ((q @ k.transpose(-2, -1)) * self.d**-0.5 + self.bias).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.scale * self.o(y.transpose(1, 2).reshape(b, n, -1))
        return x + self.mlp(x)


class Wide(nn.Module):
    """A matrix as a bare parameter, gates of a GLU, a table of tokens, a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.w = nn.Embedding(20, 12), nn.Parameter(torch.randn(12, 16))
        self.gate, self.shared = nn.Linear(16, 28), nn.Linear(14, 14)
        self.out = nn.Linear(14, 20, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = F.glu(self.gate(torch.relu(self.table(ids) @ self.w)), -1)
        return self.out(F.relu(self.shared(F.relu(self.shared(x)))))


IMAGE = (torch.randn(2, 3, 8, 8),)
TOKENS = (torch.randn(2, 5, 16),)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "resnet": (lambda: head(16, nn.Sequential(conv(3, 16), bottleneck(16, 8), bottleneck(16, 12))), IMAGE),
    "resnext": (lambda: head(16, nn.Sequential(conv(3, 16), bottleneck(16, 16, 4), conv(16, 16))), IMAGE),
    "padded": (Padded, IMAGE),
    "mobilenetv3": (Inverted, IMAGE),
    "excite": (lambda: head(8, nn.Sequential(conv(3, 8), Excite(8, linear=True), conv(8, 8))), IMAGE),
    "shuffle": (Shuffle, IMAGE),
    "densenet": (Dense, IMAGE),
    "unet": (UNet, IMAGE),
    "yolo": (Yolo, IMAGE),
    "deeplab": (DeepLab, IMAGE),
    "espcn": (Espcn, IMAGE),
    "wavenet": (WaveNet, (torch.randn(2, 1, 12),)),
    "crnn": (Crnn, IMAGE),
    "crnn-gru": (lambda: Crnn(nn.GRU), IMAGE),
    "qkv": (lambda: Attention(fused=True), TOKENS),
    "chunked": (lambda: Attention(fused=True, chunk=True, by_hand=True), TOKENS),
    "parted": (lambda: Attention(fused=False, by_hand=True), TOKENS),
    "grouped-queries": (lambda: Attention(fused=False, keys=2), TOKENS),
    "wide": (Wide, (torch.randint(0, 20, (2, 5)),)),
}


def varied(net: nn.Module) -> nn.Module:
    """The network in eval mode, with statistics and scales that are all different."""
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if value.ndim == 1 and value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "var" in key else torch.randn_like(value) * 0.5 + 0.3)
    return net.eval()


def made(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """One of them, and its example."""
    torch.manual_seed(0)
    build, example = NETS[name]
    return varied(build()), example
