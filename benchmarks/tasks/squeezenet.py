"""SqueezeNet 1.1 on photographs."""

from families import photograph_task
from networks import SqueezeNet
from pictures import usual

from tersor import Task


def task(draw: int | None = None) -> Task:
    """SqueezeNet 1.1 on photographs; see ``photograph_task``."""
    return photograph_task("squeezenet1_1", SqueezeNet(), usual, draw)
