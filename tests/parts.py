"""The parts that test networks are made of, all tiny and of random weights."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.task import Task


def task_of(model: nn.Module, *shapes: tuple[int, ...], batches: int = 3, batch: int = 8, seed: int = 0) -> Task:
    """A task on random data; BatchNorms get statistics of such data first, so that the network is alive."""
    model = warmed(model, *shapes, seed=seed)
    data = [draw(shapes, batch, seed + k) for k in range(batches)]
    return Task(
        name=type(model).__name__,
        model=model,
        example=tuple(torch.zeros(1, *s) for s in shapes),
        calibration=lambda: data,
        evaluate=lambda predict: -distance(first(predict(*data[0])), first(plain(model, *data[0]))),
        metric="minus distance",
    )


def draw(shapes: tuple[tuple[int, ...], ...], batch: int, seed: int) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *s, generator=random) for s in shapes)


def warmed(model: nn.Module, *shapes: tuple[int, ...], seed: int = 0) -> nn.Module:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    random = torch.Generator().manual_seed(seed)
    for norm in norms:
        norm.momentum = None
        if norm.weight is None:
            continue
        norm.weight.data = 0.5 + torch.rand(norm.weight.shape, generator=random)
        norm.bias.data = torch.randn(norm.bias.shape, generator=random) * 0.3
    if norms:
        model.train()
        with torch.no_grad():
            for k in range(4):
                model(*draw(shapes, 16, 100 + k))
    return model.eval()


def plain(model: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The model's outputs as a flat tuple of tensors."""
    with torch.no_grad():
        return flat(model(*inputs))


def flat(out: object) -> tuple[Tensor, ...]:
    if isinstance(out, Tensor):
        return (out,)
    values = out.values() if isinstance(out, dict) else out
    return tuple(t for value in values for t in flat(value))  # type: ignore[attr-defined]


def first(out: object) -> Tensor:
    return flat(out)[0]


def distance(a: Tensor, b: Tensor) -> float:
    """Relative root-mean-square distance."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12))


def conv(
    i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    layers = [nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([act()] if act else []))


class Lambda(nn.Module):
    """A function of tensors as a module, with the submodules that it uses."""

    def __init__(self, function: Callable, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self, *inputs)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv(3, 8), conv(8, 16), conv(16, 16)
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)
        self.join, self.up2 = conv(32, 8), nn.ConvTranspose2d(8, 8, 2, 2)
        self.last, self.head = conv(16, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        d = self.join(torch.cat([self.up(c), b], 1))
        return self.head(self.last(torch.cat([self.up2(d), a], 1)))


class DenseBlock(nn.Module):
    def __init__(self, inputs: int, growth: int = 4, layers: int = 3) -> None:
        super().__init__()
        make = lambda i: nn.Sequential(nn.BatchNorm2d(i), nn.ReLU(), nn.Conv2d(i, growth, 3, padding=1, bias=False))  # noqa: E731
        self.layers = nn.ModuleList(make(inputs + k * growth) for k in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class Shuffle(nn.Module):
    def __init__(self, channels: int, groups: int = 2) -> None:
        super().__init__()
        self.groups, half = groups, channels // 2
        self.branch = nn.Sequential(
            conv(half, half, 1), conv(half, half, 3, groups=half, act=None), conv(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Inception(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.a, self.b = conv(inputs, 8, 1), nn.Sequential(conv(inputs, 4, 1), conv(4, 8))
        self.c = nn.Sequential(conv(inputs, 4, 1), conv(4, 8), conv(8, 8))
        self.d = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inputs, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], 1)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, gate: Callable[[Tensor], Tensor], act: type[nn.Module]) -> None:
        super().__init__()
        self.reduce, self.act = nn.Conv2d(channels, max(channels // 4, 2), 1), act()
        self.expand, self.gate = nn.Conv2d(max(channels // 4, 2), channels, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        scale = self.expand(self.act(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * self.gate(scale)


class MBConv(nn.Module):
    def __init__(
        self,
        channels: int,
        act: type[nn.Module] = nn.SiLU,
        gate: Callable = torch.sigmoid,
        excite: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        wide = channels * 4
        self.expand, self.depth = conv(channels, wide, 1, act=act), conv(wide, wide, 3, groups=wide, act=act)
        self.excite = SqueezeExcite(wide, gate, excite)
        self.project = conv(wide, channels, 1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.excite(self.depth(self.expand(x))))


def head(channels: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class ViT(nn.Module):
    def __init__(self, width: int = 32, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.cls, self.position = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        make = lambda: nn.TransformerEncoderLayer(width, heads, 64, 0.1, "gelu", batch_first=True, norm_first=True)  # noqa: E731
        self.blocks = nn.ModuleList(make() for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Attention(nn.Module):
    """Self-attention spelled out, as most repositories have it."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        a = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((a @ v).transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(x)


class TwoInTwoOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.picture, self.numbers = conv(3, 8), nn.Linear(5, 8)
        self.a, self.b = nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([self.picture(x).mean((2, 3)), F.relu(self.numbers(y))], 1)
        return self.a(both), self.b(both)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.boxes, self.scores = (
            nn.Sequential(conv(3, 8), conv(8, 8)),
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x)
        return {"scores": self.scores(x), "boxes": self.boxes(x).sigmoid()}


class InPlace(nn.Module):
    """Residuals and activations that overwrite, as torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        y = self.b(x)
        y += x
        return self.head(self.act(y))


class Upsampler(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode, self.a, self.b = mode, conv(3, 8), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kwargs = {"align_corners": False} if self.mode == "bilinear" else {}
        return self.b(F.interpolate(self.a(x), scale_factor=2, mode=self.mode, **kwargs))


def small(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)
