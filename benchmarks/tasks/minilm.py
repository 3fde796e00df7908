"""all-MiniLM-L6-v2 on the STS benchmark: Spearman's correlation on its test split."""

import torch
from encoder import LENGTH, Benchmark, SentenceEncoder
from networks import load
from pictures import shared

from tersor import Task


def task() -> Task:
    """256 sentences of the training split calibrate; the 1,379 pairs of the test split judge."""
    folder = shared() / "data/minilm-stsb"
    net = SentenceEncoder()
    train, test = Benchmark(folder, "train"), Benchmark(folder, "test")
    return Task(
        name="minilm-stsb",
        model=load(net, folder / "model_fp16.safetensors"),
        example=(torch.zeros(1, LENGTH, dtype=torch.long), torch.ones(1, LENGTH, dtype=torch.bool)),
        calibration=lambda: train.batches(count=256),
        evaluate=test.spearman,
        metric="100 x Spearman",
    )
