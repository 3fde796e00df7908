"""Networks of sequences at their published depth: WaveNet, CRNN, a Conformer."""

import torch
import torch.nn.functional as F
from published_classifiers import unit
from torch import Tensor, nn


# ------------------------------------------------ WaveNet (arXiv 1609.03499)
class WaveNet(nn.Module):
    """Three stacks of ten causal convolutions, dilated by 1 to 512, over 256 classes of a sample."""

    def __init__(self, width: int = 64, skip: int = 128, stacks: int = 3, depth: int = 10, classes: int = 256) -> None:
        super().__init__()
        self.dilations = [2**k for k in range(depth)] * stacks
        self.table = nn.Conv1d(classes, width, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=d) for d in self.dilations)
        self.backs = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in self.dilations)
        self.skips = nn.ModuleList(nn.Conv1d(width, skip, 1) for _ in self.dilations)
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, skip, 1), nn.ReLU(), nn.Conv1d(skip, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.table(x), torch.zeros(())
        for gate, back, skip, dilation in zip(self.gates, self.backs, self.skips, self.dilations, strict=True):
            a, b = gate(F.pad(x, (dilation, 0))).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, found = x + back(y), found + skip(y)
        return self.last(found)


# ------------------------------------------------ CRNN (arXiv 1507.05717)
class Crnn(nn.Module):
    """Seven convolutions of a line of text 32 pixels high, two BiLSTMs, classes for CTC."""

    def __init__(self, classes: int = 37, hidden: int = 256) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            unit(128, 256, 3), nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            unit(256, 512, 3), nn.Conv2d(512, 512, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            unit(512, 512, 2, padding=0),
        )  # fmt: skip
        self.rnn1 = nn.LSTM(512, hidden, bidirectional=True)
        self.between = nn.Linear(2 * hidden, hidden)
        self.rnn2 = nn.LSTM(hidden, hidden, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).squeeze(2).permute(2, 0, 1)
        x = self.between(self.rnn1(x)[0])
        return self.head(self.rnn2(x)[0]).log_softmax(-1)


# ------------------------------------------------ Conformer (arXiv 2005.08100)
class Conformer(nn.Module):
    """Half a feed-forward part, attention, a gated depthwise convolution, the other half."""

    def __init__(self, width: int, heads: int, size: int = 31) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
            for _ in range(2)
        )
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gated = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1), nn.GLU(1), nn.Conv1d(width, width, size, padding=size // 2, groups=width),
            nn.BatchNorm1d(width), nn.SiLU(), nn.Conv1d(width, width, 1),
        )  # fmt: skip
        self.normed, self.end = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.before(x)
        b, n, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + self.out(y.transpose(1, 2).reshape(b, n, c))
        x = x + self.gated(self.normed(x).transpose(1, 2)).transpose(1, 2)
        return self.end(x + 0.5 * self.after(x))


class Recognizer(nn.Module):
    """Conformer S: 16 blocks of 144 channels and 4 heads behind convolutions that take every fourth frame."""

    def __init__(self, bands: int = 80, width: int = 144, blocks: int = 16, classes: int = 128) -> None:
        super().__init__()
        self.sub = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()
        )
        self.first = nn.Linear(width * (bands // 4), width)
        self.blocks = nn.Sequential(*(Conformer(width, 4) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.sub(x[:, None])
        b, c, t, f = y.shape
        y = self.first(y.transpose(1, 2).reshape(b, t, c * f))
        return self.head(self.blocks(y))
