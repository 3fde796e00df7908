"""A self-contained example: a small residual network that classifies handwritten digits.

``scripts/train_demo.py`` trained its weights; ``DIGITS.md`` names the source of the pictures.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tersor.demo.network import DigitNet
from tersor.task import Predict, Task

__all__ = ["DigitNet", "enlarge", "task"]

HERE = Path(__file__).parent


def task() -> Task:
    """The digits task: 256 training pictures for calibration, 600 held-out ones for evaluation.

    >>> demo = task()
    >>> demo.name, demo.samples(), demo.evaluate(demo.model).shape
    ('digits', 256, torch.Size([600]))
    """
    with torch.random.fork_rng(devices=[]):  # its initial weights are random
        network = DigitNet()
    # Stored in half precision to keep the package small, and converted to float32.
    network.load_state_dict({k: v.float() for k, v in load_file(HERE / "weights.safetensors").items()})
    digits = load_file(HERE / "digits.safetensors")
    return Task(
        name="digits",
        model=network.eval(),
        example=(torch.zeros(1, 1, 32, 32),),
        calibration=partial(batches, digits["calibration"]),
        evaluate=partial(top1, pixels=digits["test"], labels=digits["labels"]),
        metric="top-1 accuracy",
        higher_is_better=True,
    )


def enlarge(pixels: Tensor) -> Tensor:
    """uint8 [n, 1, 8, 8] with values 0…16 to float32 [n, 1, 32, 32] with values 0…1, bilinear.

    >>> enlarge(torch.full((2, 1, 8, 8), 16, dtype=torch.uint8)).unique()
    tensor([1.])
    """
    return F.interpolate(pixels.float() / 16, size=(32, 32), mode="bilinear", align_corners=False)


def batches(pixels: Tensor, size: int = 64) -> Iterator[tuple[Tensor]]:
    """Argument tuples of ``size`` enlarged pictures."""
    return ((enlarge(part),) for part in pixels.split(size))


def top1(predict: Predict, pixels: Tensor, labels: Tensor) -> Tensor:
    """1 for every picture that is classified correctly, 0 for the others: float32 [pictures]."""
    pairs = zip(pixels.split(100), labels.split(100), strict=True)
    return torch.cat([predict(enlarge(x)).argmax(dim=1) == y for x, y in pairs]).float()
