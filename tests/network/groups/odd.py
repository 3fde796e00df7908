"""Small networks of the kinds that users of other tools complain of: name, network, example."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.network.groups.nets import conv, varied


class Of(nn.Module):
    """Layers by name, and what is computed with them."""

    def __init__(self, forward: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, nn.Parameter(layer) if isinstance(layer, Tensor) else layer)
        self.of = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.of(self, *inputs)


def heads(x: Tensor, count: int) -> Tensor:
    """[batch, tokens, channels] as [batch, heads, tokens, inner]."""
    b, n, c = x.shape
    return x.view(b, n, count, c // count).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def cbam(m: Any, x: Tensor) -> Tensor:
    """Attention over channels by means and largest values, then over places by those over channels."""
    x = m.a(x)
    seen = [m.up(F.relu(m.down(pool(x, 1)))) for pool in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)]
    x = x * torch.sigmoid(sum(seen))
    places = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
    return m.z((x * torch.sigmoid(m.place(places))).mean((2, 3)))


def shuffles(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    b, c, h, w = x.size()
    x = x.view(b, 4, c // 4, h, w).permute(0, 2, 1, 3, 4).contiguous().view(b, -1, h, w)
    left, right = x[:, : c // 2], x[:, c // 2 :]
    return m.z(torch.cat((m.b(right), left), 1).mean((2, 3)))


def fused(m: Any, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = m.qkv(m.n(x)).reshape(b, n, 3, 4, 5).permute(2, 0, 3, 1, 4)
    return x + m.o(joined((q @ k.mT * 5**-0.5).softmax(-1) @ v))


def grouped(m: Any, x: Tensor) -> Tensor:
    q, k, v = heads(m.q(x), 6), heads(m.k(x), 2), heads(m.v(x), 2)
    k, v = k.repeat_interleave(3, 1), v.repeat_interleave(3, dim=1)
    return m.o(joined(F.scaled_dot_product_attention(q, k, v)))


def rotated(m: Any, x: Tensor) -> Tensor:
    """Rotary positions: half of a head's channels are turned with the other half."""
    q, k, v = (heads(f(x), 4) for f in (m.q, m.k, m.v))
    angle = torch.arange(x.shape[1])[:, None] * torch.tensor([0.5, 0.1, 0.02])
    cos, sin = (torch.cat((f(angle), f(angle)), -1) for f in (torch.cos, torch.sin))

    def turned(t: Tensor) -> Tensor:
        a, b = t[..., :3], t[..., 3:]
        return t * cos + torch.cat((-b, a), -1) * sin

    return m.o(joined(F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)))


def windows(m: Any, x: Tensor) -> Tensor:
    """Rolled and parted into windows, as Swin does; products within a window."""
    x = m.a(x).permute(0, 2, 3, 1)
    b, h, w, c = x.shape
    x = x.roll((-1, -1), (1, 2)).view(b, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
    q, k, v = m.qkv(x).chunk(3, -1)
    x = (q @ k.transpose(1, 2)).softmax(-1) @ v
    x = x.view(b, h // 4, w // 4, 4, 4, -1).transpose(2, 3).reshape(b, h, w, -1).roll((1, 1), (1, 2))
    return m.z(x.mean((1, 2)))


def eca(m: Any, x: Tensor) -> Tensor:
    """A convolution over the channels' means."""
    x = m.a(x)
    scale = torch.sigmoid(m.over(x.mean((2, 3))[:, None])).transpose(1, 2)[..., None]
    return m.z((x * scale).mean((2, 3)))


def both(m: Any, x: Tensor) -> Tensor:
    """The sum of a recurrent layer's two directions."""
    y = m.rnn(m.a(x))[0]
    return m.z(y[..., :6] + y[..., 6:])


def tied(m: Any, ids: Tensor) -> Tensor:
    x = m.table(ids)
    return F.linear(x + m.b(F.gelu(m.a(x))), m.table.weight)


def slots(m: Any, x: Tensor) -> Tensor:
    """A mean over several heads' results, each a matrix of a bare parameter."""
    return m.z(torch.einsum("bi,kio->bko", m.a(x), m.w).relu().mean(1))


def parts(m: Any, x: Tensor) -> Tensor:
    """A residual sum with a part of the channels alone."""
    x = m.a(x)
    x = torch.cat((x[:, :4] + m.b(x), x[:, 4:]), 1)
    return m.z(x.mean((2, 3)))


def maxout(m: Any, x: Tensor) -> Tensor:
    """The largest of each two channels."""
    x = m.a(x)
    return m.z(x.view(len(x), 6, 2, *x.shape[2:]).amax(2).mean((2, 3)))


def halves(m: Any, x: Tensor) -> Tensor:
    a, b = torch.split(m.a(x), [5, 7], 1)
    return m.z(torch.cat((b.tanh(), a.relu(), a), 1))


def places_first(m: Any, x: Tensor) -> Tensor:
    """LayerNorm over channels by a permutation, layer scale as ConvNeXt has it."""
    x = m.a(x)
    y = m.down(F.gelu(m.up(m.n(m.d(x).permute(0, 2, 3, 1)))))
    return m.z((x + (m.scale * y).permute(0, 3, 1, 2)).mean((2, 3)))


def every_second(m: Any, x: Tensor) -> Tensor:
    """Space to depth by slices, as YOLOv5's Focus and Swin's merging do."""
    x = m.a(x)
    x = torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)
    return m.z(m.b(x).mean((2, 3)))


def spectrum(m: Any, x: Tensor) -> Tensor:
    """A Fourier transform over places."""
    x = torch.fft.rfft2(m.a(x), norm="ortho")
    return m.z(torch.fft.irfft2(x * torch.complex(m.wr, m.wi), s=(8, 8), norm="ortho").mean((2, 3)))


def dynamic(m: Any, x: Tensor) -> Tensor:
    """Kernels that the network computes: a mixture of several, weighted by a softmax over them."""
    share = m.route(x.mean((2, 3))).softmax(-1)
    return m.z(F.relu(torch.einsum("bk,bkchw->bchw", share, torch.stack([f(x) for f in m.fs], 1))).mean((2, 3)))


def gated(m: Any, x: Tensor) -> Tensor:
    a, b = m.a(x).chunk(2, -1)
    return x + m.z(F.silu(a) * b * m.scale)


def memory(m: Any, x: Tensor) -> Tensor:
    """Tokens that the network holds joined in front, and left out behind."""
    x = torch.cat((m.tokens.expand(len(x), -1, -1), m.a(x)), 1)
    return m.z(F.relu(m.b(x))[:, 2:])


def linear_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (heads(t, 4) for t in (m.q(x), m.k(x), m.v(x)))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    state = torch.einsum("bhnd,bhne->bhde", k, v)
    weight = 1 / (torch.einsum("bhnd,bhd->bhn", q, k.sum(2)) + 1e-2)
    return m.z(joined(torch.einsum("bhnd,bhde,bhn->bhne", q, state, weight)))


def bilinear(m: Any, x: Tensor) -> Tensor:
    """The outer product of two parts, flattened, as bilinear pooling and factorization machines read it."""
    a, b = m.a(x), m.b(x)
    return m.z((a[:, :, None] * b[:, None, :]).flatten(1))


def selective(m: Any, x: Tensor) -> Tensor:
    """Selective kernels: a softmax over branches for each channel."""
    found = torch.stack([f(x) for f in m.fs], 1)
    share = m.up(F.relu(m.down(found.sum(1).mean((2, 3))))).view(len(x), 2, -1).softmax(1)
    return m.z((found * share[..., None, None]).sum(1).mean((2, 3)))


def positions(m: Any, x: Tensor) -> Tensor:
    """Coordinates as channels beside others."""
    x = m.a(x)
    b, _, h, w = x.shape
    row = torch.linspace(-1, 1, h).view(1, 1, h, 1).expand(b, 1, h, w)
    return m.z(F.relu(m.b(torch.cat((x, row, row.transpose(2, 3)), 1))).mean((2, 3)))


def ghost(m: Any, x: Tensor) -> Tensor:
    """Cheap copies beside the channels that they are made of, and no more than are needed."""
    x = m.a(x)
    return m.z(torch.cat((x, m.b(x)), 1)[:, :14].mean((2, 3)))


def shifted(m: Any, x: Tensor) -> Tensor:
    """A quarter of the channels moved by a step of time each way, as temporal shift modules do."""
    x = m.a(x)
    out = torch.cat((F.pad(x[:, 1:, :3], (0, 0, 0, 1)), F.pad(x[:, :-1, 3:6], (0, 0, 1, 0)), x[:, :, 6:]), 2)
    return m.z(out)


def squeezed(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.a(x)).mean((2, 3), keepdim=True).squeeze()
    return m.z(x)


IMAGE = (torch.randn(2, 3, 8, 8),)
ROWS = (torch.randn(2, 6),)
TOKENS = (torch.randn(2, 5, 12),)
Conv, Linear = nn.Conv2d, nn.Linear
ODD: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "cbam": (lambda: Of(cbam, a=Conv(3, 8, 3), down=Conv(8, 4, 1), up=Conv(4, 8, 1), place=Conv(2, 1, 3, padding=1),
                        z=Linear(8, 5)), IMAGE),
    "shuffles": (lambda: Of(shuffles, a=conv(3, 16), b=conv(8, 8), z=Linear(16, 5)), IMAGE),
    "fused": (lambda: Of(fused, n=nn.LayerNorm(12), qkv=Linear(12, 60), o=Linear(20, 12)), TOKENS),
    "grouped": (lambda: Of(grouped, q=Linear(12, 24), k=Linear(12, 8), v=Linear(12, 8), o=Linear(24, 12)), TOKENS),
    "rotated": (lambda: Of(rotated, q=Linear(12, 24), k=Linear(12, 24), v=Linear(12, 24), o=Linear(24, 12)), TOKENS),
    "windows": (lambda: Of(windows, a=Conv(3, 10, 1), qkv=Linear(10, 36), z=Linear(12, 5)), IMAGE),
    "eca": (lambda: Of(eca, a=Conv(3, 8, 3), over=nn.Conv1d(1, 1, 3, padding=1), z=Linear(8, 5)), IMAGE),
    "both": (lambda: Of(both, a=Linear(12, 7), rnn=nn.LSTM(7, 6, batch_first=True, bidirectional=True),
                        z=Linear(6, 5)), TOKENS),
    "tied": (lambda: Of(tied, table=nn.Embedding(20, 12), a=Linear(12, 16), b=Linear(16, 12)),
             (torch.randint(0, 20, (2, 5)),)),
    "slots": (lambda: Of(slots, a=Linear(6, 9), w=torch.randn(3, 9, 8), z=Linear(8, 5)), ROWS),
    "parts": (lambda: Of(parts, a=conv(3, 10), b=conv(10, 4), z=Linear(10, 5)), IMAGE),
    "maxout": (lambda: Of(maxout, a=Conv(3, 12, 3), z=Linear(6, 5)), IMAGE),
    "halves": (lambda: Of(halves, a=Linear(6, 12), z=Linear(17, 5)), ROWS),
    "places-first": (lambda: Of(places_first, a=Conv(3, 8, 1), d=Conv(8, 8, 3, padding=1, groups=8),
                                n=nn.LayerNorm(8), up=Linear(8, 20), down=Linear(20, 8), scale=torch.randn(8),
                                z=Linear(8, 5)), IMAGE),
    "every-second": (lambda: Of(every_second, a=conv(3, 6), b=conv(24, 8), z=Linear(8, 5)), IMAGE),
    "spectrum": (lambda: Of(spectrum, a=Conv(3, 6, 3, padding=1), wr=torch.randn(6, 8, 5), wi=torch.randn(6, 8, 5),
                            z=Linear(6, 5)), IMAGE),
    "dynamic": (lambda: Of(dynamic, route=Linear(3, 3), fs=nn.ModuleList(Conv(3, 8, 3) for _ in range(3)),
                           z=Linear(8, 5)), IMAGE),
    "gated": (lambda: Of(gated, a=Linear(12, 40), scale=torch.randn(20), z=Linear(20, 12)), TOKENS),
    "memory": (lambda: Of(memory, tokens=torch.randn(1, 2, 10), a=Linear(12, 10), b=Linear(10, 8), z=Linear(8, 5)),
               TOKENS),
    "linear-attention": (lambda: Of(linear_attention, q=Linear(12, 16), k=Linear(12, 16), v=Linear(12, 24),
                                    z=Linear(24, 5)), TOKENS),
    "bilinear": (lambda: Of(bilinear, a=Linear(6, 5), b=Linear(6, 7), z=Linear(35, 4)), ROWS),
    "selective": (lambda: Of(selective, fs=nn.ModuleList((conv(3, 8), conv(3, 8, 5))), down=Linear(8, 4),
                             up=Linear(4, 16), z=Linear(8, 5)), IMAGE),
    "positions": (lambda: Of(positions, a=Conv(3, 7, 3), b=Conv(9, 8, 1), z=Linear(8, 5)), IMAGE),
    "ghost": (lambda: Of(ghost, a=conv(3, 8), b=conv(8, 8, groups=8), z=Linear(14, 5)), IMAGE),
    "shifted": (lambda: Of(shifted, a=Linear(12, 16), z=Linear(16, 5)), TOKENS),
    "squeezed": (lambda: Of(squeezed, a=conv(3, 8), z=Linear(8, 5)), IMAGE),
    "prelu": (lambda: nn.Sequential(Conv(3, 8, 3), nn.PReLU(8), Conv(8, 6, 1), nn.PReLU(), nn.Flatten(),
                                    Linear(216, 5)), IMAGE),
    "weight-norm": (lambda: nn.Sequential(weight_norm(Conv(3, 8, 3)), nn.ReLU(), weight_norm(Conv(8, 6, 1), dim=1),
                                          nn.ELU(), nn.Flatten(), weight_norm(Linear(216, 5))), IMAGE),
    "norms": (lambda: nn.Sequential(Conv(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), Conv(8, 12, 1),
                                    nn.GroupNorm(6, 12), nn.ReLU(), Conv(12, 6, 1), nn.InstanceNorm2d(6),
                                    Conv(6, 6, 1), nn.GroupNorm(6, 6), Conv(6, 5, 1), nn.GroupNorm(1, 5),
                                    Conv(5, 3, 1)), IMAGE),
    "transposed": (lambda: nn.Sequential(Conv(3, 12, 3), nn.ConvTranspose2d(12, 18, 2, 2, groups=3), nn.ReLU(),
                                         Conv(18, 9, 3, groups=3), nn.ConvTranspose2d(9, 9, 2, groups=9), nn.ReLU6(),
                                         nn.ConvTranspose2d(9, 4, 1)), IMAGE),
    "multiplier": (lambda: nn.Sequential(Conv(3, 6, 3), nn.SiLU(), Conv(6, 12, 3, groups=6), nn.ReLU(),
                                         Conv(12, 5, 1)), IMAGE),
    "three-dimensional": (lambda: nn.Sequential(nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.AvgPool3d(2),
                                                nn.Conv3d(6, 8, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
                                                Linear(8, 3)), (torch.randn(2, 1, 6, 6, 6),)),
    "recurrent": (lambda: Of(lambda m, x: m.z(m.two(m.one(x)[0])[1][0]), one=nn.RNN(12, 8, batch_first=True),
                             two=nn.LSTM(8, 7, num_layers=2), z=Linear(7, 4)), TOKENS),
    "transformer": (lambda: nn.Sequential(nn.TransformerEncoderLayer(12, 4, 20, batch_first=True),
                                          nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, norm_first=True),
                                          Linear(12, 4)), TOKENS),
    "decoder": (lambda: Of(lambda m, x: m.z(m.layer(x, m.a(x))), a=Linear(12, 12),
                           layer=nn.TransformerDecoderLayer(12, 3, 20, batch_first=True), z=Linear(12, 4)), TOKENS),
    "multihead": (lambda: Of(lambda m, x: m.z(m.att(m.a(x), m.a(x), m.b(x), need_weights=True)[0]), a=Linear(12, 16),
                             b=Linear(12, 16), att=nn.MultiheadAttention(16, 4, batch_first=True), z=Linear(16, 4)),
                  TOKENS),
    "unfolded": (lambda: Of(lambda m, x: m.z(F.fold(F.relu(m.b(F.unfold(m.a(x), 2, stride=2).mT)).mT, (8, 8), 2,
                                                    stride=2)), a=Conv(3, 6, 1), b=Linear(24, 20), z=Conv(5, 4, 1)),
                 IMAGE),
    "batch-statistics": (lambda: nn.Sequential(Conv(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False),
                                               nn.ReLU(), Conv(8, 4, 1)), IMAGE),
    "bilinear-layer": (lambda: Of(lambda m, x: m.z(m.f(m.a(x), m.b(x)).relu()), a=Linear(6, 5), b=Linear(6, 7),
                                  f=nn.Bilinear(5, 7, 8), z=Linear(8, 4)), ROWS),
    "cosine": (lambda: Of(lambda m, x: F.normalize(m.b(F.relu(m.a(x))), dim=-1) @ F.normalize(m.w, dim=-1).T * m.s,
                          a=Linear(6, 10), b=Linear(10, 8), w=torch.randn(5, 8), s=torch.ones(()) * 10), ROWS),
    "by-hand": (lambda: Of(lambda m, x: torch.relu(x @ m.w + m.b) @ m.v.t() + m.c.sum(0), w=torch.randn(6, 9),
                           b=torch.randn(9), v=torch.randn(4, 9), c=torch.randn(3, 4)), ROWS),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network with statistics and scales that are all different, and its example."""
    torch.manual_seed(0)
    build, example = ODD[name]
    return varied(build()), example
