"""BERT-base as `transformers` defines it, 128 tokens, random weights: for speed and size."""

import torch
from resnet50 import Named
from transformers import BertConfig, BertModel

from tersor import Task

LENGTH = 128


def task() -> Task:
    """Random sentences stand for data; nothing is judged."""
    torch.manual_seed(0)
    network = Named(BertModel(BertConfig(), add_pooling_layer=False), "last_hidden_state").eval()
    words = [torch.randint(0, 30522, (8, LENGTH)) for _ in range(4)]
    return Task(
        name="bert-base-random",
        model=network,
        example=(torch.zeros(1, LENGTH, dtype=torch.long),),
        calibration=lambda: [(batch,) for batch in words],
    )
