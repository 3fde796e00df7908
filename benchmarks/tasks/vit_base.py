"""ViT-B/16 as `transformers` defines it, random weights: for speed and size."""

import torch
from pictures import CALIBRATE, photograph_batches, symmetric
from resnet50 import Named
from transformers import ViTConfig, ViTForImageClassification

from tersor import Task


def task(pictures: int = 32) -> Task:
    """The first photographs calibrate; nothing is judged."""
    torch.manual_seed(0)
    return Task(
        name="vit-base-random",
        model=Named(ViTForImageClassification(ViTConfig()), "logits").eval(),
        example=(torch.zeros(1, 3, 224, 224),),
        calibration=lambda: photograph_batches(CALIBRATE[:pictures], symmetric),
    )
