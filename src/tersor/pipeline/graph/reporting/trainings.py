"""What training did, put into the report; a result that was better before is never silent."""

import math
from collections.abc import Sequence

from tersor.measure import Report, with_headline
from tersor.measure.formatting import size_text
from tersor.measure.parts.training import TrainedEpoch, Training, complaint
from tersor.measure.size import bytes_of, in_float, listed
from tersor.pipeline.graph.training.step import Trained
from tersor.words import said

_RECURRENT = ("lstm", "gru", "rnn")


def with_trainings(report: Report, trainings: Sequence[Trained]) -> Report:
    """The report with a record and the warnings of every training."""
    if not trainings:
        return report
    found = tuple(map(recorded, trainings))
    worse = (text for training in found if (text := complaint(training)) is not None)
    notes = (note for training in found for note in training.notes)
    warnings = tuple(dict.fromkeys((*worse, *notes, *_left(report), *report.warnings)))
    return with_headline(report.model_copy(update={"trainings": found, "warnings": warnings}))


def _left(report: Report) -> list[str]:
    """A warning if recurrent layers, or most of the weights in embeddings, were not trained for fewer bits."""
    kept = [x for x in in_float(report.layers) if x.op.startswith((*_RECURRENT, "embedding"))]
    recurrent = any(x.op.startswith(_RECURRENT) for x in kept)
    if not recurrent and bytes_of(kept) <= bytes_of(report.layers) / 2:
        return []
    return [said(
        "{names} stayed in float, with {size} of weights: train them with `quantize: int8-dynamic` in place of the "
        "recipe's, or by tersor.trainable(model) and tersor.quantize_dynamic",
        names=listed(kept), size=size_text(bytes_of(kept)),
    )]  # fmt: skip


def recorded(trained: Trained) -> Training:
    """A training as the report keeps it, in which what is not finite is None."""
    epochs = (
        TrainedEpoch(
            number=e.number,
            steps=e.steps,
            loss=_finite(e.loss),
            held_out=_finite(e.held_out),
            rate=e.rate,
            seconds=round(e.seconds, 3),
        )
        for e in trained.history.epochs
    )
    return Training(
        epochs=tuple(epochs),
        before=_finite(trained.before),
        after=_finite(trained.after),
        kept=trained.kept,
        held_out=trained.held_out,
        notes=(*trained.notes, *trained.history.notes),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
