"""What happened in a training, for the report."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Args:
        number: from 1.
        steps: steps of the optimizer so far.
        loss: its mean over the epoch.
        held_out: the loss on held-out data behind the epoch, lower is better; None if it was not measured.
        rate: the last learning rate.
        seconds: of this epoch.
    """

    number: int
    steps: int
    loss: float
    held_out: float | None
    rate: float
    seconds: float


@dataclass(frozen=True)
class History:
    """A whole training.

    Args:
        epochs: in order.
        before: the loss on held-out data before training.
        notes: what was chosen on the way, in words.
    """

    epochs: tuple[Epoch, ...] = ()
    before: float | None = None
    notes: tuple[str, ...] = field(default=())
