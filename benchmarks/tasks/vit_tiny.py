"""ViT-Tiny on photographs."""

from families import photograph_task
from pictures import symmetric
from vit import ViT

from tersor import Task


def task(draw: int | None = None) -> Task:
    """ViT-Tiny on photographs; see ``photograph_task``."""
    return photograph_task("vit_tiny_p16", ViT(), symmetric, draw)
