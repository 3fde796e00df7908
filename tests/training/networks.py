"""Tiny networks that are taught, and that teach."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.network.capture import capture
from tersor.network.trainable.build import trainable


class Block(nn.Module):
    """A residual block whose first convolution still reads the larger pictures of the stage before."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(self.norm(x)) + self.shortcut(x))


class Pictures(nn.Module):
    """[batch, 3, 16, 16] to [batch, 4], stages of 16, 8 and 4 pixels."""

    def __init__(self, width: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        widths = [width, width, 2 * width, 4 * width]
        for k in range(3):
            first = Block(widths[k], widths[k + 1], 1 if k == 0 else 2)
            rest = (Block(widths[k + 1], widths[k + 1], 1) for _ in range(blocks - 1))
            setattr(self, f"layer{k + 1}", nn.Sequential(first, *rest))
        self.head = nn.Linear(4 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def captured(model: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    """The float graph of a model, as it is trained."""
    network = capture(model.eval(), example)
    return trainable(network, network, network, lambda *_: None, {name: True for name, _ in model.named_parameters()})


def pictures(seed: int = 0, **options: int) -> nn.Module:
    return seeded(seed, lambda: Pictures(**options))


def bert(seed: int = 0, width: int = 8, blocks: int = 2, heads: int = 2, attention: str = "eager") -> nn.Module:
    """A classifier of token ids, [batch, length] to logits [batch, 3]."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=20, hidden_size=width, num_hidden_layers=blocks, num_attention_heads=heads, intermediate_size=16,
        max_position_embeddings=16, num_labels=3, attn_implementation=attention, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return seeded(seed, lambda: transformers.BertForSequenceClassification(config))


def seeded(seed: int, make) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


class Tapped(nn.Module):
    """What a trainable graph offers: operators by title, their shapes, and identities behind them to hook."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(width, n, 3, 3) * 0.3 for n in (3, width, width))
        self.identities = nn.ModuleDict()

    def taps(self) -> Mapping[str, tuple[int, ...]]:
        large, width = "stem layer1.0.conv layer1.0.relu layer1.relu".split(), len(self.weights[0])
        sizes = dict.fromkeys(large, (16, 16)) | {"layer2.conv": (8, 8), "layer2.relu": (8, 8), "mean": ()}
        return {title: (2, width, *size) for title, size in sizes.items()}

    def tap(self, title: str) -> nn.Module:
        if title not in self.taps():
            raise KeyError(title)
        key = title.replace(".", "/")
        if key not in self.identities:
            self.identities[key] = nn.Identity()
        return self.identities[key]

    def forward(self, x: Tensor) -> Tensor:
        def at(title: str, value: Tensor) -> Tensor:
            key = title.replace(".", "/")
            return self.identities[key](value) if key in self.identities else value

        x = at("stem", F.conv2d(x, self.weights[0], padding=1))
        x = at("layer1.0.relu", F.relu(at("layer1.0.conv", F.conv2d(x, self.weights[1], padding=1))))
        x = at("layer1.relu", F.relu(x + 1))
        x = at("layer2.relu", F.relu(at("layer2.conv", F.conv2d(x, self.weights[2], stride=2, padding=1))))
        return at("mean", x.mean((2, 3)))
