"""ResNet-20 on CIFAR-10."""

from families import cifar_task
from networks import ResNetCifar

from tersor import Task


def task(draw: int | None = None) -> Task:
    """ResNet-20 on CIFAR-10; see ``cifar_task``."""
    return cifar_task("resnet20", ResNetCifar(n=3), draw)
