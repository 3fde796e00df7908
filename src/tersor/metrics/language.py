"""Metrics of language: the likelihood of a text, and words recognised or pronounced."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from tersor.errors import MetricError
from tersor.metrics.inputs import Values, check_same_count, import_library, scored


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
    check_same_count(said, wanted)
    empty = next((k for k, text in enumerate(wanted) if not text.split()), None)
    if empty is not None:
        raise MetricError(f"reference {empty} has no word: omit samples without speech")
    jiwer = import_library("jiwer", "word_error")
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
    check_same_count(said, allowed)
    for k, references in enumerate(allowed):
        if isinstance(references, str) or not references:
            raise MetricError(f"word {k} has the references {references!r}: pass a list of at least one")
    return 100 * sum(word in references for word, references in zip(said, allowed, strict=True)) / len(said)


def _mean_loss(scores: Values, targets: Values, ignore: int) -> float:
    """In nats."""
    scores, targets = scored(scores, targets, ignore)
    losses = F.cross_entropy(scores.float(), targets, reduction="none").double()
    bad = ~torch.isfinite(losses)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise MetricError(
            f"the loss of target {first} ({int(targets[first])}) is {losses[first].item()}: its score is "
            f"{scores[first, targets[first]].item()}, the highest {scores[first].max().item()}: pass finite logits"
        )
    return losses.mean().item()
