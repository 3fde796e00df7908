"""What a training is given: its options, and what surrounds it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from tersor.tables import Named
from tersor.training.roles import Roles


class Options(Protocol):
    """The options of the step ``train`` that the loop reads; ``tersor.recipe.Train`` documents them."""

    epochs: int
    steps: int | None
    optimizer: Named
    rate: float
    scale_rate: float | None
    weight_decay: float
    warmup: float
    clip: float | None
    freeze_batchnorm: float
    re_estimate: bool
    proximal: Named | None
    strength: float
    sparsity: Any
    schedule: Named
    oscillation: Named
    average: float | None
    patience: int | None
    precision: str


@dataclass
class Setting:
    """What surrounds a training.

    Args:
        seed: of everything random.
        judge: the loss of a network on held-out data, in eval mode; the same whenever it is called.
        optimizer: the task's ``optimizer(named_parameters)``, in place of the step's.
        folder: where each epoch is saved, and a training resumed; None: nowhere.
        about: what identifies the training in its folder.
        device: where it runs; None: the CPU, or where ``accelerate launch`` says.
        trackers: of accelerate, such as ``tensorboard``, which get the losses.
        roles: what the student's parameters are, for proximal operators and zeros.
        report: called behind each step with the epoch, the steps so far, all steps, and the loss.
    """

    seed: int = 0
    judge: Callable[[nn.Module], float] | None = None
    optimizer: Callable[..., Optimizer] | None = None
    folder: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)
    device: torch.device | None = None
    trackers: tuple[str, ...] = ()
    roles: Roles = field(default_factory=Roles)
    report: Callable[[int, int, int, float], None] = lambda *_: None
