"""Common metrics for ``Task.evaluate``: shares are in percent, correlations between −1 and 1.

Invalid inputs raise MetricError: empty ones, mismatched shapes, NaN, unknown labels, or values for which the metric is
undefined. ``word_error`` and ``f1`` need libraries of the extra ``tersor[metrics]``.
"""

import importlib
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from tersor.errors import MetricError
from tersor.process import importing

__all__ = [
    "bits_per_character",
    "f1",
    "hits",
    "pearson",
    "perplexity",
    "spearman",
    "top_k",
    "word_accuracy",
    "word_error",
]

Values = Tensor | ArrayLike


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
    scores, labels = _check_scores(scores, labels)
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


def spearman(predicted: Values, wanted: Values) -> float:
    """Spearman's rank correlation, −1 to 1, of two series ``[samples]``; ties get their mean rank.

    Raises:
        MetricError: also if one series is constant and so has no order.

    >>> spearman([1.0, 2.0, 30.0], [10, 20, 21])
    1.0
    """
    return _correlation("spearmanr", predicted, wanted)


def pearson(predicted: Values, wanted: Values) -> float:
    """Pearson's linear correlation, −1 to 1, of two series ``[samples]``.

    Raises:
        MetricError: also if one series is constant.

    >>> round(pearson([1.0, 2.0, 3.0], [1, 2, 4]), 4)
    0.982
    """
    return _correlation("pearsonr", predicted, wanted)


def perplexity(scores: Values, targets: Values, ignore: int = -100) -> float:
    """The perplexity, exp of the mean negative log-likelihood: the number of equally likely choices; 1 at best.

    Args:
        scores: ``[..., classes]``, logits or log-probabilities, not probabilities.
        targets: ``[...]``, the true class, already shifted to match its scores.
        ignore: targets of this value, such as padding, are skipped.

    >>> round(perplexity(torch.zeros(2, 3, 5), torch.tensor([[0, 4, 2], [1, -100, -100]])), 4)
    5.0
    """
    return torch.tensor(_mean_loss(scores, targets, ignore), dtype=torch.float64).exp().item()


def bits_per_character(scores: Values, targets: Values, ignore: int = -100) -> float:
    """The mean negative log-likelihood in bits, the compressed length of a text (arXiv 1308.0850).

    For a character model these are bits per character, for a token model bits per token. Arguments as in
    ``perplexity``.

    >>> round(bits_per_character(torch.zeros(3, 8), torch.tensor([0, 7, 2])), 4)
    3.0
    """
    return _mean_loss(scores, targets, ignore) / math.log(2)


def word_error(said: Sequence[str], wanted: Sequence[str]) -> float:
    """The word error rate in percent: substituted, deleted and inserted words per word of all references.

    Words are separated by whitespace; case and punctuation count, so normalize both sides first. It may exceed 100.
    Computed by jiwer, of the extra ``tersor[metrics]``.

    Raises:
        MetricError: also if a reference has no word, or jiwer is not installed.

    >>> word_error(["the cat sat", "on mat"], ["the cat sat", "on the mat"])
    16.666666666666664
    """
    for texts, what in ((said, "said"), (wanted, "wanted")):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise MetricError(f"`{what}` must be a list of texts, one per sample: for one text pass [text]")
    _same_count(said, wanted)
    empty = next((k for k, text in enumerate(wanted) if not text.split()), None)
    if empty is not None:
        raise MetricError(f"reference {empty} has no word: omit samples without speech")
    jiwer = _library("jiwer", "word_error")
    references, hypotheses = ([" ".join(text.split()) for text in texts] for texts in (wanted, said))
    return 100 * float(jiwer.wer(references, hypotheses))


def word_accuracy(said: Sequence[Any], allowed: Sequence[Collection[Any]]) -> float:
    """The percentage of words that match one of their references, as for pronunciations.

    Args:
        said: a string for each word, or a list of its phonemes.
        allowed: the references of each word, in the same form.

    >>> word_accuracy([["R", "EH", "D"], ["K", "AE", "P"]], [[["R", "EH", "D"], ["R", "IY", "D"]], [["K", "AE", "T"]]])
    50.0
    """
    _same_count(said, allowed)
    for k, references in enumerate(allowed):
        if isinstance(references, str) or not references:
            raise MetricError(f"word {k} has the references {references!r}: pass a list of at least one")
    return 100 * sum(word in references for word, references in zip(said, allowed, strict=True)) / len(said)


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
    predicted, wanted = _series(predicted, wanted)
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
    metrics = _library("sklearn.metrics", "f1", "scikit-learn")
    return 100 * float(metrics.f1_score(wanted.numpy(), predicted.numpy(), average=average))


def _tensor(values: Values, what: str) -> Tensor:
    try:
        tensor = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise MetricError(f"`{what}` is not an array of numbers: {error}") from error
    if not tensor.numel():
        raise MetricError(f"`{what}` is empty, of shape {list(tensor.shape)}: pass at least one sample")
    return tensor


def _check_scores(scores: Values, labels: Values, ignore: int | None = None) -> tuple[Tensor, Tensor]:
    """Check scores and labels; with ``ignore``, drop ignored ones and return ``[kept, classes]`` and ``[kept]``."""
    scores = _tensor(scores, "scores")
    labels = _tensor(labels, "labels").to(scores.device)
    if scores.ndim < 1 or scores.shape[:-1] != labels.shape:
        raise MetricError(
            f"scores of shape {list(scores.shape)} and labels of shape {list(labels.shape)}; "
            "scores must have one more dimension, the classes, at the end"
        )
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise MetricError(f"labels are {labels.dtype}: pass class numbers as integers")
    labels = labels.long()
    if ignore is not None:
        kept = labels != ignore
        if not kept.any():
            raise MetricError(f"all {labels.numel()} labels are {ignore}, which is ignored: nothing is left to score")
        scores, labels = scores[kept], labels[kept]
    wrong = labels[(labels < 0) | (labels >= scores.shape[-1])]
    if len(wrong):
        raise MetricError(f"label {int(wrong[0])} with {scores.shape[-1]} classes: labels count from 0")
    nan = int(scores.isnan().sum())
    if nan:
        raise MetricError(
            f"{nan} of {scores.numel()} scores are NaN: find the first layer of the model that outputs one"
        )
    return scores, labels


def _mean_loss(scores: Values, targets: Values, ignore: int) -> float:
    """In nats."""
    scores, targets = _check_scores(scores, targets, ignore)
    losses = F.cross_entropy(scores.float(), targets, reduction="none").double()
    bad = ~torch.isfinite(losses)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise MetricError(
            f"the loss of target {first} ({int(targets[first])}) is {losses[first].item()}: its score is "
            f"{scores[first, targets[first]].item()}, the highest {scores[first].max().item()}: pass finite logits"
        )
    return losses.mean().item()


def _correlation(name: str, predicted: Values, wanted: Values) -> float:
    predicted, wanted = _series(predicted, wanted)
    if len(predicted) < 2:
        raise MetricError("one sample has no correlation: pass at least two")
    series = []
    for x, what in ((predicted, "predicted"), (wanted, "wanted")):
        x = x.double()
        if not torch.isfinite(x).all():
            raise MetricError(f"{int((~torch.isfinite(x)).sum())} values of `{what}` are NaN or infinite")
        if bool((x == x[0]).all()):
            raise MetricError(f"`{what}` is {x[0].item()} everywhere: a constant has no correlation")
        series.append(x.numpy())
    with importing():
        statistics = importlib.import_module("scipy.stats")  # imported here, since it takes a second
    return float(getattr(statistics, name)(*series).statistic)


def _series(predicted: Values, wanted: Values) -> tuple[Tensor, Tensor]:
    predicted, wanted = _tensor(predicted, "predicted").cpu(), _tensor(wanted, "wanted").cpu()
    if predicted.ndim != 1 or predicted.shape != wanted.shape:
        raise MetricError(
            f"`predicted` has shape {list(predicted.shape)}, `wanted` {list(wanted.shape)}: both must be [samples]"
        )
    return predicted, wanted


def _same_count(said: Sequence[Any], wanted: Sequence[Any]) -> None:
    if len(said) != len(wanted) or not len(said):
        raise MetricError(f"{len(said)} said and {len(wanted)} wanted: pass equally many of both, at least one")


def _library(module: str, what: str, package: str | None = None) -> Any:
    try:
        with importing():
            return importlib.import_module(module)
    except ImportError as error:
        raise MetricError(
            f'{what} needs {package or module}, which is not installed; run: pip install "tersor[metrics]"'
        ) from error
