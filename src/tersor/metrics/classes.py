"""Metrics of classes: how many labels are among the highest scores, and F1."""

import torch
from torch import Tensor

from tersor.errors import MetricError
from tersor.metrics.inputs import Values, import_library, paired_series, scored


def hits(scores: Values, labels: Values, k: int = 1) -> Tensor:
    """1 where the label is among the ``k`` highest scores, 0 elsewhere: float32, of the labels' shape.

    Returned from ``evaluate`` as they are, the report can say whether a difference is more than chance. Of equal
    scores the first class counts as the highest, as in ``argmax``.

    Args:
        scores: ``[..., classes]``, the higher the likelier.
        labels: ``[...]``, integers from 0.
        k: how many guesses are allowed, at most the number of classes.

    >>> hits([[0.1, 0.7, 0.2], [0.5, 0.4, 0.1]], [1, 2])
    tensor([1., 0.])
    """
    scores, labels = scored(scores, labels)
    if not 1 <= k <= scores.shape[-1]:
        raise MetricError(f"k is {k} with {scores.shape[-1]} classes; give a k from 1 to the number of classes")
    own = scores.gather(-1, labels[..., None])
    earlier = torch.arange(scores.shape[-1], device=scores.device) < labels[..., None]
    before = (scores > own) | ((scores == own) & earlier)
    return (before.sum(-1) < k).float()


def top_k(scores: Values, labels: Values, k: int = 1) -> float:
    """The percentage of samples whose label is among the ``k`` highest scores (ILSVRC, arXiv 1409.0575).

    ``hits`` gives the same for every sample; shapes and errors are its own.

    >>> scores = [[0.1, 0.7, 0.2], [0.5, 0.4, 0.1]]
    >>> top_k(scores, [1, 2]), top_k(scores, [1, 2], k=3)
    (50.0, 100.0)
    """
    return 100 * hits(scores, labels, k).double().mean().item()


def f1(predicted: Values, wanted: Values, average: str = "binary") -> float:
    """F1 in percent: the harmonic mean of precision and recall of classes ``[samples]``, by scikit-learn.

    Args:
        average: ``binary`` is the F1 of class 1 beside class 0; of more classes, ``macro`` is the mean of every
            class's F1, ``weighted`` the same by their frequency, ``micro`` counts all decisions together.

    Raises:
        MetricError: also where neither side holds the positive class, or scikit-learn (``tersor[metrics]``) is missing.

    >>> f1([1, 1, 0, 0], [1, 0, 0, 0])
    66.66666666666666
    """
    predicted, wanted = paired_series(predicted, wanted)
    if average not in ("binary", "macro", "weighted", "micro"):
        raise MetricError(f"average is {average!r}; it is one of binary, macro, weighted, micro")
    for x, what in ((predicted, "predicted"), (wanted, "wanted")):
        if x.is_floating_point() or x.is_complex():
            raise MetricError(f"`{what}` is {x.dtype}; F1 is of classes: give integers, by argmax or a threshold")
    predicted, wanted = predicted.long(), wanted.long()
    if average == "binary":
        both = torch.cat([predicted, wanted])
        strange = both[(both != 0) & (both != 1)]
        if len(strange):
            raise MetricError(f"class {int(strange[0])} in a binary F1; give 0 and 1, or average='macro'")
        if not both.any():
            raise MetricError("class 1 is neither predicted nor wanted, so F1 is undefined; judge more samples")
    metrics = import_library("sklearn.metrics", "f1", "scikit-learn")
    return 100 * float(metrics.f1_score(wanted.numpy(), predicted.numpy(), average=average))
