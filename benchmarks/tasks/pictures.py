"""The pictures of the benchmark tasks, read from the folder of shared data, and their judge.

What is kept in memory are bytes: the 10,000 test pictures of CIFAR-10 are 30 MB, the 744 photographs to
report 112 MB. Calibration pictures are read again at every pass, one batch at a time.
"""

import csv
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

Transform = Callable[[Tensor], Tensor]

CALIBRATE, REPORT = range(256), range(256, 1000)  # of the photographs: never the same ones


def shared() -> Path:
    """The folder that holds ``data/``: ``$TERSOR_SHARED``, or ``shared`` next to this checkout."""
    return Path(os.environ.get("TERSOR_SHARED") or Path(__file__).resolve().parents[3] / "shared")


def calibration_draws(k: int, population: int, size: int) -> list[int]:
    """The pictures of draw ``k``: 0 is the whole ``population``, others ``size`` of them at random.

    >>> calibration_draws(0, 4, 3), len(set(calibration_draws(1, 256, 200)))
    ([0, 1, 2, 3], 200)
    """
    if k == 0:
        return list(range(population))
    return np.random.default_rng(k).permutation(population)[:size].tolist()


def usual(pixels: Tensor) -> Tensor:
    """0…255 to the mean 0 and the deviation 1 of ImageNet's channels."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return (pixels / 255 - mean) / deviation


def symmetric(pixels: Tensor) -> Tensor:
    """0…255 to −1…1."""
    return pixels / 127.5 - 1


# ------------------------------------------------ CIFAR-10
@cache
def cifar10(split: str) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [10000, 3, 32, 32] and labels int64 of ``test``, ``train0``…: a mosaic of 100 a row."""
    folder = shared() / "data/cifar10"
    with Image.open(folder / f"{split}.webp") as picture:
        mosaic = torch.from_numpy(np.array(picture.convert("RGB")))
    tiles = mosaic.unflatten(0, (-1, 32)).unflatten(2, (100, 32))  # row, y, column, x, channel
    pixels = tiles.permute(0, 2, 4, 1, 3).flatten(0, 1).contiguous()
    return pixels, load_file(folder / "labels.safetensors")[f"{split}.label"].long()


# ------------------------------------------------ 1,000 photographs with ImageNet's classes
def photographs(numbers: Iterable[int]) -> Iterator[Tensor]:
    """The photographs as uint8 [3, 224, 224], decoded one by one: the whole frame, bilinear."""
    folder = shared() / "data/imagenet-nips17"
    with (folder / "labels.csv").open(newline="") as table, zipfile.ZipFile(folder / "images.zip") as archive:
        names = [row["file"] for row in csv.DictReader(table)]
        for number in numbers:
            with Image.open(io.BytesIO(archive.read(names[number]))) as picture:
                small = picture.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
            yield torch.from_numpy(np.array(small)).permute(2, 0, 1)


@cache
def reported_photographs() -> tuple[Tensor, Tensor]:
    """Pixels uint8 [744, 3, 224, 224] and labels of the photographs that no calibration may see."""
    with (shared() / "data/imagenet-nips17/labels.csv").open(newline="") as table:
        labels = torch.tensor([int(row["label"]) for row in csv.DictReader(table)])
    return torch.stack(list(photographs(REPORT))), labels[list(REPORT)]


def photograph_batches(
    numbers: Sequence[int], transform: Transform, size: int = 32
) -> Iterator[tuple[Tensor]]:
    """Argument tuples of ``size`` photographs, decoded when they are asked for."""
    for start in range(0, len(numbers), size):
        yield (transform(torch.stack(list(photographs(numbers[start : start + size]))).float()),)


# ------------------------------------------------ the judge
def top1(predict: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor, transform: Transform) -> Tensor:
    """1 for every picture whose largest score is its label's, 0 for the others: float32 [pictures]."""
    from tersor.metrics import hits  # here, since peers train in an environment without tersor

    batches = zip(pixels.split(100), labels.split(100), strict=True)
    return torch.cat([hits(predict(transform(x.float())), y) for x, y in batches])
