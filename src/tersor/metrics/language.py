"""Metrics of language: the likelihood of a text, and words recognised or pronounced."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from tersor.errors import MetricError
from tersor.metrics.inputs import Values, check_same_count, import_library, scored


def perplexity(scores: Values, targets: Values, ignore: int = -100) -> float:
    """How many equally likely choices the model is as unsure as: e to the mean negative log likelihood, 1 at best.

    Args:
        scores: ``[..., classes]``, logits or log probabilities (no probabilities), before the softmax.
        targets: ``[...]``, the class that truly came, already shifted to stand beside its scores.
        ignore: targets of this value are left out, as padding is.

    >>> round(perplexity(torch.zeros(2, 3, 5), torch.tensor([[0, 4, 2], [1, -100, -100]])), 4)
    5.0
    """
    return torch.tensor(_mean_loss(scores, targets, ignore), dtype=torch.float64).exp().item()


def bits_per_character(scores: Values, targets: Values, ignore: int = -100) -> float:
    """The mean negative log likelihood in bits: the length of a text that the model compresses (arXiv 1308.0850).

    Of a model of characters, these are bits a character; of one of tokens, bits a token. Arguments as ``perplexity``.

    >>> round(bits_per_character(torch.zeros(3, 8), torch.tensor([0, 7, 2])), 4)
    3.0
    """
    return _mean_loss(scores, targets, ignore) / math.log(2)


def word_error(said: Sequence[str], wanted: Sequence[str]) -> float:
    """The word error rate in percent: words exchanged, left out or added, per word of all references.

    Words are what blanks part; case and punctuation count, so normalize both sides alike before. It may exceed 100.
    Counted by jiwer, of the extra ``tersor[metrics]``.

    Raises:
        MetricError: also where a reference has no word, or jiwer is not installed.

    >>> word_error(["the cat sat", "on mat"], ["the cat sat", "on the mat"])
    16.666666666666664
    """
    for texts, what in ((said, "said"), (wanted, "wanted")):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise MetricError(f"`{what}` must be a list of texts, one for each sample; for one text write [text]")
    check_same_count(said, wanted)
    empty = next((k for k, text in enumerate(wanted) if not text.split()), None)
    if empty is not None:
        raise MetricError(f"reference {empty} has no word; leave out samples in which nothing is said")
    jiwer = import_library("jiwer", "word_error")
    references, hypotheses = ([" ".join(text.split()) for text in texts] for texts in (wanted, said))
    return 100 * float(jiwer.wer(references, hypotheses))


def word_accuracy(said: Sequence[Any], allowed: Sequence[Collection[Any]]) -> float:
    """The percentage of words said in one of the ways that are allowed, as pronunciations are judged.

    Args:
        said: for every word a string, or its sounds as a list.
        allowed: for every word its references, in the same form.

    >>> word_accuracy([["R", "EH", "D"], ["K", "AE", "P"]], [[["R", "EH", "D"], ["R", "IY", "D"]], [["K", "AE", "T"]]])
    50.0
    """
    check_same_count(said, allowed)
    for k, ways in enumerate(allowed):
        if isinstance(ways, str) or not ways:
            raise MetricError(f"word {k} has the references {ways!r}; give a list of at least one")
    return 100 * sum(word in ways for word, ways in zip(said, allowed, strict=True)) / len(said)


def _mean_loss(scores: Values, targets: Values, ignore: int) -> float:
    """In nats."""
    scores, targets = scored(scores, targets, ignore)
    losses = F.cross_entropy(scores.float(), targets, reduction="none").double()
    bad = ~torch.isfinite(losses)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise MetricError(
            f"the loss of target {first} ({int(targets[first])}) is {losses[first].item()}: its score is "
            f"{scores[first, targets[first]].item()}, the highest {scores[first].max().item()}; give finite logits"
        )
    return losses.mean().item()
