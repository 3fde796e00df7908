"""The exponential moving average of weights and log-scales, which replaces them at the end."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def average_of(student: nn.Module, decay: float | None) -> AveragedModel | None:
    """An average that begins with the first update; None without a decay."""
    return None if decay is None else AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay))


@contextmanager
def averaged(student: nn.Module, average: AveragedModel | None) -> Iterator[None]:
    """The student with averaged weights inside the block, bit for bit its own again behind it."""
    kept = [] if average is None else [p.detach().clone() for p in student.parameters()]
    take_average(student, average)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, own in zip(student.parameters(), kept, strict=average is not None):
                parameter.copy_(own)


@torch.no_grad()
def take_average(student: nn.Module, average: AveragedModel | None) -> None:
    """Copy the averaged weights into the student, if there are any yet."""
    if average is not None and int(average.n_averaged):
        for own, mean in zip(student.parameters(), average.module.parameters(), strict=True):
            own.copy_(mean)
