"""CIFAR-10 networks with training data: ResNet-20 from its FP32 self, and small students of ResNet-56."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import resnet20
import torch
import torch.nn.functional as F
from networks import ResNetCifar, load
from pictures import cifar10, shared, top1, usual
from torch import Tensor, nn
from training_pictures import BATCH, HELD_OUT, Epoch, held_out

import tersor

Loss = Callable[[nn.Module, Any], Tensor]


class Inputs:
    """The batches of an epoch as the model's arguments, without labels."""

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.epoch)

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        for x, _ in self.epoch:
            yield (x,)


def task(
    *, loss: Loss | None = None, pictures: int = 50_000, batch: int = BATCH, judged: int = 10_000,
    held: int = HELD_OUT,
) -> tersor.Task:
    """ResNet-20 with its FP32 weights; without ``loss`` it learns from its FP32 self, and batches have no labels.

    Args:
        pictures: of the 50,000 that train.
        judged: of the 10,000 test pictures.
        held: of the last training pictures, which rank.
    """
    pixels, labels = cifar10("test")

    def train() -> Any:
        epoch = Epoch(pictures, batch)
        return Inputs(epoch) if loss is None else epoch

    def validation() -> Iterator[Any]:
        for x, y in held_out(held):
            yield (x,) if loss is None else (x, y)

    return replace(
        resnet20.task(),
        train=train,
        loss=loss,
        validation=validation,
        evaluate=lambda predict: top1(predict, pixels[:judged], labels[:judged], usual),
    )


def student_task(seed: int = 0, **sizes: int) -> tersor.Task:
    """A ResNet-8 with random weights that learns by cross-entropy; its teacher is ResNet-56."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResNetCifar(n=1)
    return replace(task(loss=labelled, **sizes), name="resnet8-cifar10", model=network.eval(), teacher=teacher())


def teacher() -> nn.Module:
    """ResNet-56, which recognizes 93.34 % of the test pictures."""
    network = load(ResNetCifar(n=9), shared() / "data/cifar10-nets/resnet56.safetensors")
    return network.to(memory_format=torch.channels_last)


def labelled(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy."""
    x, y = batch
    return F.cross_entropy(model(x), y)
