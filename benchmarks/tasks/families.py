"""What the tasks of one data set share: how they are calibrated and judged."""

import os

import torch
from networks import load
from pictures import (
    CALIBRATE,
    Transform,
    calibration_draws,
    cifar10,
    photograph_batches,
    reported_photographs,
    shared,
    top1,
    usual,
)
from torch import nn

import tersor


def cifar_task(name: str, network: nn.Module, draw: int | None) -> tersor.Task:
    """512 training pictures calibrate, all 10,000 test pictures judge.

    Draw 0 is the first 512 training pictures; draw 1, 2, … another 512 of the first 10,000.
    """
    numbers = calibration_draws(current(draw), population=10_000, size=512)[:512]

    def calibration():
        pixels, _ = cifar10("train0")
        return ((usual(batch.float()),) for batch in pixels[numbers].split(64))

    return tersor.Task(
        name=f"{name}-cifar10",
        model=load(network, shared() / f"data/cifar10-nets/{name}.safetensors"),
        example=(torch.zeros(1, 3, 32, 32),),
        calibration=calibration,
        evaluate=lambda predict: top1(predict, *cifar10("test"), usual),
        metric="top-1 accuracy",
        higher_is_better=True,
    )


def photograph_task(name: str, network: nn.Module, transform: Transform, draw: int | None) -> tersor.Task:
    """The first 256 photographs calibrate, the other 744 judge.

    Draw 0 is all 256; draw 1, 2, … 200 of them at random.
    """
    numbers = calibration_draws(current(draw), population=len(CALIBRATE), size=200)
    return tersor.Task(
        name=f"{name}-photographs",
        model=load(network, shared() / f"data/imagenet-nets/{name}.safetensors"),
        example=(torch.zeros(1, 3, 224, 224),),
        calibration=lambda: photograph_batches(numbers, transform),
        evaluate=lambda predict: top1(predict, *reported_photographs(), transform),
        metric="top-1 accuracy",
        higher_is_better=True,
    )


def current(draw: int | None) -> int:
    """The calibration draw that was asked for: the argument, else ``$TERSOR_DRAW``, else 0."""
    return int(os.environ.get("TERSOR_DRAW", "0")) if draw is None else draw
