"""textgenrnn (two LSTMs) on headlines: bits a character."""

import torch
from recurrent import CONTEXT, bits, textgen, titles

from tersor import Task


def task() -> Task:
    """The first 500 titles judge; others calibrate, which only recipes of fixed ranges need."""
    judging = titles(500)
    return Task(
        name="textgenrnn",
        model=textgen(),
        example=(torch.zeros(1, CONTEXT, dtype=torch.long),),
        calibration=lambda: ((part,) for part in titles(10, start=500)[0].split(32)),
        evaluate=lambda predict: bits(predict, *judging),
        metric="bits a character",
        higher_is_better=False,
    )
