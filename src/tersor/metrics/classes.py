"""Metrics of classes: how many labels are among the highest scores, and F1."""

import torch
from torch import Tensor

from tersor.errors import MetricError
from tersor.metrics.inputs import Values, import_library, paired_series, scored


def hits(scores: Values, labels: Values, k: int = 1) -> Tensor:
    """1 where the label is among the ``k`` highest scores, 0 elsewhere: float32, of the labels' shape.

    If ``evaluate`` returns these, the report can tell whether a difference is significant. Among equal scores the first
    class counts as the highest, as in ``argmax``.

    Args:
        scores: ``[..., classes]``; higher is more likely.
        labels: ``[...]``, integers from 0.
        k: the number of guesses, at most the number of classes.

    >>> hits([[0.1, 0.7, 0.2], [0.5, 0.4, 0.1]], [1, 2])
    tensor([1., 0.])
    """
    scores, labels = scored(scores, labels)
    if not 1 <= k <= scores.shape[-1]:
        raise MetricError(f"k is {k} with {scores.shape[-1]} classes: k must be from 1 to the number of classes")
    label_score = scores.gather(-1, labels[..., None])
    earlier = torch.arange(scores.shape[-1], device=scores.device) < labels[..., None]
    before = (scores > label_score) | ((scores == label_score) & earlier)
    return (before.sum(-1) < k).float()


def top_k(scores: Values, labels: Values, k: int = 1) -> float:
    """The percentage of samples whose label is among the ``k`` highest scores (ILSVRC, arXiv 1409.0575).

    ``hits`` returns the same per sample; shapes and errors are those of ``hits``.

    >>> scores = [[0.1, 0.7, 0.2], [0.5, 0.4, 0.1]]
    >>> top_k(scores, [1, 2]), top_k(scores, [1, 2], k=3)
    (50.0, 100.0)
    """
    return 100 * hits(scores, labels, k).double().mean().item()


def f1(predicted: Values, wanted: Values, average: str = "binary") -> float:
    """The F1 score in percent, the harmonic mean of precision and recall, of classes ``[samples]``, by scikit-learn.

    Args:
        average: ``binary`` is the F1 of class 1 against class 0; for more classes, ``macro`` is the mean over classes,
            ``weighted`` the mean weighted by frequency, ``micro`` counts all decisions together.

    Raises:
        MetricError: also if neither side has the positive class, or scikit-learn (``tersor[metrics]``) is missing.

    >>> f1([1, 1, 0, 0], [1, 0, 0, 0])
    66.66666666666666
    """
    predicted, wanted = paired_series(predicted, wanted)
    if average not in ("binary", "macro", "weighted", "micro"):
        raise MetricError(f"average is {average!r}: choose binary, macro, weighted or micro")
    for x, what in ((predicted, "predicted"), (wanted, "wanted")):
        if x.is_floating_point() or x.is_complex():
            raise MetricError(f"`{what}` is {x.dtype}, but F1 needs classes: pass integers, by argmax or a threshold")
    predicted, wanted = predicted.long(), wanted.long()
    if average == "binary":
        both = torch.cat([predicted, wanted])
        invalid = both[(both != 0) & (both != 1)]
        if len(invalid):
            raise MetricError(f"class {int(invalid[0])} in a binary F1: pass classes 0 and 1, or average='macro'")
        if not both.any():
            raise MetricError("class 1 is neither predicted nor wanted, so F1 is undefined: use more samples")
    metrics = import_library("sklearn.metrics", "f1")
    return 100 * float(metrics.f1_score(wanted.numpy(), predicted.numpy(), average=average))
