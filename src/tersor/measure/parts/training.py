"""What a report tells of training: every epoch, and whether the network was better before it."""

from typing import Annotated

from pydantic import Field

from tersor.measure.parts.base import ReportPart
from tersor.words import _, plural, said, shown

REMEDY = said("more epochs, a lower `rate`, or more training data")


class TrainedEpoch(ReportPart):
    """One epoch: its mean loss, the loss on held-out data behind it, its last learning rate, its seconds.

    `number` counts from 1, `steps` are those of the optimizer so far.
    """

    number: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=0)]
    loss: float | None
    held_out: float | None = None
    rate: Annotated[float, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]


class Training(ReportPart):
    """One step `train`, or a training loop of the user's own, whose epochs are not known.

    `before` and `after` are the loss on held-out data of the network that training started with (the post-training
    quantized one, if it was quantized) and of the trained one; None for NaN and infinity. `held_out` says what it is.
    `kept` tells whether the trained network is the result.
    """

    epochs: tuple[TrainedEpoch, ...] = ()
    before: float | None
    after: float | None
    kept: bool
    held_out: str
    notes: tuple[str, ...] = ()

    @property
    def worse(self) -> bool:
        """Whether the network was better before.

        >>> [Training(before=1, after=b, kept=True, held_out="the loss").worse for b in (0.5, 2, None)]
        [False, True, True]
        """
        return self.before is not None and (self.after is None or self.after > self.before)


def complaint(training: Training) -> str | None:
    """The English sentence to keep of a network that was better before training, or None.

    >>> complaint(Training(before=0.1, after=0.3, kept=False, held_out="the loss"))
    'training made it worse (held-out loss 0.1 → 0.3): the network from before training was kept'
    """
    if training.kept and not training.worse:
        return None
    change = {"before": _number(training.before), "after": _number(training.after)}
    if not training.kept:
        return said(
            "training made it worse (held-out loss {before} → {after}): the network from before training was kept",
            **change,
        )
    return said("training made it worse (held-out loss {before} → {after}), and the trained network is the result",
                **change)  # fmt: skip


def summary(training: Training) -> str:
    """What training led to, in a sentence without capital and stop.

    >>> summary(Training(before=0.123, after=0.045, kept=True, held_out="the loss"))
    'trained: held-out loss 0.123 → 0.045'
    """
    if (found := complaint(training)) is not None:
        return shown(found)
    change = {"before": loss_text(training.before), "after": loss_text(training.after)}
    if not training.epochs:
        return _("trained: held-out loss {before} → {after}", **change)
    return plural(
        "trained {count} epoch: held-out loss {before} → {after}",
        "trained {count} epochs: held-out loss {before} → {after}",
        len(training.epochs), **change,
    )  # fmt: skip


def further(int4: bool, trained: bool) -> str:
    """What training could do for a result that is not accurate enough.

    >>> further(True, False)
    'training (`tersor finetune --recipe int4-qat`)'
    """
    if trained:
        return _("more epochs of training")
    return _("training (`tersor finetune --recipe {recipe}`)", recipe="int4-qat" if int4 else "int8-qat")


def loss_text(value: float | None) -> str:
    """Format a loss.

    >>> loss_text(0.0123456), loss_text(None)
    ('0.01235', 'not finite')
    """
    return shown(_number(value))


def _number(value: float | None) -> str:
    return said("not finite") if value is None else f"{value:.4g}"
