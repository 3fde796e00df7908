"""MobileNetV2 on photographs."""

from families import photograph_task
from networks import MobileNetV2
from pictures import symmetric

from tersor import Task


def task(draw: int | None = None) -> Task:
    """MobileNetV2 on photographs; see ``photograph_task``."""
    return photograph_task("mobilenetv2_100", MobileNetV2(), symmetric, draw)
