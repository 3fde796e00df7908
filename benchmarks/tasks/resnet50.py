"""ResNet-50 as `transformers` defines it, with random weights: for speed, size and the audit."""

from itertools import islice

import torch
from pictures import CALIBRATE, photograph_batches, usual
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

from tersor import Task


class Named(nn.Module):
    """One output of a `transformers` network, by its name, instead of the output object."""

    def __init__(self, network: nn.Module, output: str) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)[self.output]


def task(pictures: int = 128) -> Task:
    """The first ``pictures`` photographs calibrate; nothing is judged.

    BatchNorm's statistics are taken from 64 photographs, or the activations of random weights would grow
    from block to block and no range would be that of a trained network.
    """
    torch.manual_seed(0)
    network = Named(ResNetForImageClassification(ResNetConfig(num_labels=1000)), "logits")
    settle(network)
    return Task(
        name="resnet50-random",
        model=network.eval(),
        example=(torch.zeros(1, 3, 224, 224),),
        calibration=lambda: photograph_batches(CALIBRATE[:pictures], usual),
    )


@torch.no_grad()
def settle(network: nn.Module) -> None:
    """Fill BatchNorm's running statistics with the mean over two batches of photographs."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean over the batches
    network.train()
    for (pixels,) in islice(photograph_batches(CALIBRATE, usual), 2):
        network(pixels)
