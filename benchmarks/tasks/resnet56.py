"""ResNet-56 on CIFAR-10."""

from families import cifar_task
from networks import ResNetCifar

from tersor import Task


def task(draw: int | None = None) -> Task:
    """ResNet-56 on CIFAR-10; see ``cifar_task``."""
    return cifar_task("resnet56", ResNetCifar(n=9), draw)
