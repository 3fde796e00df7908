"""All 50,000 training pictures of CIFAR-10, cropped and mirrored at random; for us and for peers, without tersor."""

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from pictures import cifar10, usual
from torch import Tensor

BATCH, HELD_OUT, PADDING = 128, 5000, 4


@cache
def training_set() -> tuple[Tensor, Tensor]:
    """Pixels uint8 [50000, 3, 32, 32] and labels int64: 154 MB."""
    parts = [cifar10(f"train{k}") for k in range(5)]
    return torch.cat([pixels for pixels, _ in parts]), torch.cat([labels for _, labels in parts])


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed PyTorch's generator as ``tersor.finetune`` does before each epoch, so that peers see the same pictures."""
    torch.manual_seed((seed * 1_000_003 + epoch) % (1 << 32))


class Epoch:
    """One pass over the first training pictures, shuffled, cropped and mirrored; the last, smaller batch is left out.

    All random numbers are drawn from PyTorch's global generator when the pass begins: the pictures depend on nothing
    that happens between two batches, and two batches of 64 are one of 128.

    Args:
        pictures: how many of them.
        batch: pictures in a batch.

    Yields pictures float32 [batch, 3, 32, 32], normalized, channels_last, and labels int64 [batch].
    """

    def __init__(self, pictures: int = 50_000, batch: int = BATCH) -> None:
        self.pictures, self.batch = pictures, batch

    def __len__(self) -> int:
        return self.pictures // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        pixels, labels = training_set()
        order = torch.randperm(self.pictures)
        corners = torch.randint(2 * PADDING + 1, (self.pictures, 2))
        mirrored = torch.rand(self.pictures) < 0.5
        for k in range(len(self)):
            part = slice(k * self.batch, (k + 1) * self.batch)
            chosen = order[part]
            yield ready(cropped(pixels[chosen], corners[part], mirrored[part])), labels[chosen]


def cropped(pixels: Tensor, corners: Tensor, mirrored: Tensor) -> Tensor:
    """Pictures cut out of themselves with a black border of 4 pixels.

    Args:
        pixels: uint8 [pictures, 3, 32, 32].
        corners: row and column of the upper left corner, 0 to 8, [pictures, 2].
        mirrored: bool [pictures], True to swap left and right.

    >>> x = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    >>> same = cropped(x, torch.full((2, 2), 4), torch.tensor([False, True]))
    >>> bool((same[0] == x[0]).all()), bool((same[1] == x[1].flip(-1)).all())
    (True, True)
    """
    count, size = len(pixels), pixels.shape[-1]
    bordered, steps = F.pad(pixels, (PADDING,) * 4), torch.arange(size)
    rows, columns = corners[:, :1] + steps, corners[:, 1:] + steps
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    found = bordered[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return found.permute(0, 3, 1, 2)


def ready(pixels: Tensor) -> Tensor:
    """Normalized and channels_last."""
    return usual(pixels.float()).contiguous(memory_format=torch.channels_last)


def held_out(pictures: int = HELD_OUT) -> Iterator[tuple[Tensor, Tensor]]:
    """The last training pictures as they are, in the same batches each time. The networks know them by heart: they
    rank, and prove nothing."""
    pixels, labels = training_set()
    for x, y in zip(pixels[-pictures:].split(500), labels[-pictures:].split(500), strict=True):
        yield ready(x), y
