"""Networks of every kind: what a user might bring that nobody here has seen."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from parts import (
    Attention,
    DenseBlock,
    Inception,
    InPlace,
    Lambda,
    MBConv,
    Named,
    Shuffle,
    UNet,
    Upsampler,
    ViT,
    conv,
    head,
    small,
)
from torch import nn

Builder = Callable[[], tuple[nn.Module, tuple[int, ...]]]
PICTURE = (3, 16, 16)
NETWORKS: dict[str, Builder] = {
    "unet": lambda: (UNet(), PICTURE),
    "densenet": lambda: (
        small(
            conv(3, 8),
            DenseBlock(8),
            nn.Conv2d(20, 12, 1),
            nn.AvgPool2d(2),
            DenseBlock(12),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            head(24),
        ),
        PICTURE,
    ),
    "shufflenet": lambda: (small(conv(3, 16), Shuffle(16), Shuffle(16), head(16)), PICTURE),
    "inception": lambda: (small(conv(3, 8), Inception(8), nn.MaxPool2d(2), Inception(32), head(32)), PICTURE),
    "efficientnet": lambda: (small(conv(3, 8, act=nn.SiLU), MBConv(8), MBConv(8), head(8)), PICTURE),
    "mobilenetv3": lambda: (
        small(conv(3, 8, act=nn.Hardswish), MBConv(8, nn.Hardswish, F.hardsigmoid, nn.ReLU), head(8)),
        PICTURE,
    ),
    "mlp": lambda: (
        small(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)),
        (20,),
    ),
    "cnn1d": lambda: (
        small(
            nn.Conv1d(2, 8, 5, padding=2),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(8, 8, 3, dilation=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        (2, 64),
    ),
    "cnn3d": lambda: (
        small(
            nn.Conv3d(1, 4, 3, padding=1),
            nn.BatchNorm3d(4),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.Conv3d(4, 4, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        (1, 8, 8, 8),
    ),
    "vit": lambda: (ViT(), PICTURE),
    "attention": lambda: (small(Attention(), Attention(), nn.LayerNorm(32), nn.Linear(32, 4)), (9, 32)),
    "groupnorm": lambda: (
        small(
            nn.Conv2d(3, 8, 3),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.InstanceNorm2d(8, affine=True),
            nn.ReLU(),
            head(8),
        ),
        PICTURE,
    ),
    "layernorm2d": lambda: (
        small(
            nn.Conv2d(3, 8, 4, 4),
            nn.LayerNorm([8, 4, 4]),
            nn.GELU(),
            nn.Conv2d(8, 8, 1),
            nn.Flatten(),
            nn.Linear(128, 4),
        ),
        PICTURE,
    ),
    "prelu": lambda: (small(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 8, 3), nn.PReLU(), head(8)), PICTURE),
    "leaky": lambda: (
        small(
            nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 3), nn.ELU(), nn.Conv2d(8, 8, 3), nn.Mish(), head(8)
        ),
        PICTURE,
    ),
    "pixel_shuffle": lambda: (
        small(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Conv2d(3, 3, 3, padding=1),
        ),
        PICTURE,
    ),
    "pixel_unshuffle": lambda: (
        small(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, 8, 3, padding=1),
            nn.ReLU(),
            nn.ChannelShuffle(2),
            nn.Conv2d(8, 3, 3, padding=1),
        ),
        PICTURE,
    ),
    "nearest": lambda: (Upsampler("nearest"), PICTURE),
    "bilinear": lambda: (Upsampler("bilinear"), PICTURE),
    "dict": lambda: (Named(), PICTURE),
    "inplace": lambda: (InPlace(), PICTURE),
    "vgg": lambda: (
        small(
            conv(3, 8),
            nn.MaxPool2d(2),
            conv(8, 8),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 32),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(32, 10),
        ),
        PICTURE,
    ),
    "relu6": lambda: (
        small(conv(3, 8, act=nn.ReLU6), conv(8, 8, groups=8, act=nn.ReLU6), conv(8, 8, 1, act=None), head(8)),
        PICTURE,
    ),
    "grouped": lambda: (
        small(
            conv(3, 8),
            conv(8, 16, groups=4),
            nn.ConvTranspose2d(16, 8, 3, 2, 1, 1, groups=4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 1),
        ),
        PICTURE,
    ),
    "reflect": lambda: (
        small(
            nn.ReflectionPad2d(1),
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(8, 8, 3, 2),
            head(8),
        ),
        PICTURE,
    ),
    "same": lambda: (
        small(
            nn.Conv2d(3, 8, 3, padding="same"),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding="valid"),
            nn.ReLU(),
            nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"),
        ),
        PICTURE,
    ),
    "normalise_inside": lambda: (
        Lambda(lambda m, x: m.net((x - 0.45) / 0.22), net=small(conv(3, 8), head(8))),
        PICTURE,
    ),
    "softmax_out": lambda: (Lambda(lambda m, x: m.net(x).softmax(1), net=small(conv(3, 8), head(8))), PICTURE),
    "mean_pool": lambda: (
        Lambda(lambda m, x: m.head(m.net(x).mean([2, 3])), net=conv(3, 8), head=nn.Linear(8, 3)),
        PICTURE,
    ),
    "mean_keep": lambda: (
        Lambda(lambda m, x: m.head(m.net(x).mean([-1, -2], keepdim=True)), net=conv(3, 8), head=nn.Conv2d(8, 3, 1)),
        PICTURE,
    ),
    "shared_layer": lambda: (
        Lambda(
            lambda m, x: m.head(m.c(F.relu(m.c(F.relu(m.s(x)))))),
            s=nn.Conv2d(3, 8, 3, padding=1),
            c=nn.Conv2d(8, 8, 3, padding=1),
            head=head(8),
        ),
        PICTURE,
    ),
    "add_self": lambda: (Lambda(lambda m, x: m.head((y := m.c(x)) + y * y), c=conv(3, 8), head=head(8)), PICTURE),
    "three_sum": lambda: (
        Lambda(lambda m, x: m.head(m.a(x) + m.b(x) + m.c(x)), a=conv(3, 8), b=conv(3, 8), c=conv(3, 8), head=head(8)),
        PICTURE,
    ),
    "sub_div": lambda: (
        Lambda(lambda m, x: m.head(m.a(x) - m.b(x) / 2 + 1), a=conv(3, 8), b=conv(3, 8), head=head(8)),
        PICTURE,
    ),
    "stack": lambda: (
        Lambda(lambda m, x: m.head(torch.stack([m.a(x), m.b(x)], 1).amax(1)), a=conv(3, 8), b=conv(3, 8), head=head(8)),
        PICTURE,
    ),
    "slices": lambda: (
        Lambda(
            lambda m, x: m.head(torch.cat([(y := m.a(x))[:, :4] * y[:, 4:].sigmoid(), y[:, ::2, :, :]], 1)),
            # A sigmoid's codes are n/256, so that products fall half-way between two codes: seldom without a ReLU's
            # zeros, and an average pool would make a hundred of its own finer steps of them.
            a=conv(3, 8, act=None),
            head=nn.Conv2d(8, 3, 1),
        ),
        PICTURE,
    ),
    "two_heads_one_body": lambda: (
        Lambda(lambda m, x: (m.a(y := m.body(x)), m.b(y), y), body=conv(3, 8), a=head(8), b=nn.Conv2d(8, 2, 1)),
        PICTURE,
    ),
    "einsum": lambda: (
        Lambda(
            lambda m, x: m.head(torch.einsum("bchw,bdhw->bcd", m.a(x), m.b(x)).flatten(1)),
            a=conv(3, 4),
            b=conv(3, 4),
            head=nn.Linear(16, 3),
        ),
        PICTURE,
    ),
    "bilinear_pool": lambda: (
        Lambda(
            lambda m, x: m.head((y := m.a(x).flatten(2)).bmm(y.transpose(1, 2)).flatten(1)),
            a=conv(3, 4),
            head=nn.Linear(16, 3),
        ),
        PICTURE,
    ),
    "l2norm": lambda: (Lambda(lambda m, x: F.normalize(m.net(x), dim=1), net=small(conv(3, 8), head(8))), PICTURE),
    "ceil_pool": lambda: (
        small(conv(3, 8), nn.MaxPool2d(3, 2, ceil_mode=True), conv(8, 8), nn.AvgPool2d(3, 2, ceil_mode=True), head(8)),
        (3, 15, 15),
    ),
    "glu": lambda: (Lambda(lambda m, x: m.head(F.glu(m.a(x), 1)), a=nn.Conv2d(3, 16, 3), head=head(8)), PICTURE),
    "weight_norm": lambda: (
        small(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
            nn.ReLU(),
            nn.utils.spectral_norm(nn.Conv2d(8, 8, 3)),
            head(8),
        ),
        PICTURE,
    ),
    "conv_by_function": lambda: (
        Lambda(
            lambda m, x: m.head(F.relu(F.conv2d(x, m.c.weight.abs(), m.c.bias, padding=1))),
            c=nn.Conv2d(3, 8, 3),
            head=head(8),
        ),
        PICTURE,
    ),
    "identity_out": lambda: (Lambda(lambda m, x: (x, m.c(x)), c=conv(3, 8)), PICTURE),
}
