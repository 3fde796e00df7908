"""Common metrics for ``Task.evaluate``: METRICS, by name. Shares are in percent, correlations lie between −1 and 1.

Input that a metric cannot evaluate raises MetricError: no samples, mismatched shapes, NaN, a label that does not exist,
or values for which the metric is undefined. ``word_error`` and ``f1`` need libraries of the extra ``tersor[metrics]``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tersor.metrics.classes import f1, hits, top_k
from tersor.metrics.correlations import pearson, spearman
from tersor.metrics.language import bits_per_character, perplexity, word_accuracy, word_error

__all__ = [
    "METRICS",
    "MetricInfo",
    "bits_per_character",
    "f1",
    "hits",
    "known_metric",
    "pearson",
    "perplexity",
    "spearman",
    "top_k",
    "word_accuracy",
    "word_error",
]


@dataclass(frozen=True)
class MetricInfo:
    """A metric and how its values are read.

    Args:
        function: returns the value, or the values of all samples, whose mean is the metric.
        higher_is_better: its direction.
        best: the value of a model without errors.
        unit: ``fraction`` lies between 0 and 1 and is displayed in percent; ``%`` is already in percent.
        source: where it is defined.
    """

    function: Callable[..., Any]
    higher_is_better: bool
    best: float
    unit: Literal["", "%", "fraction", "bits"]
    source: str


METRICS: dict[str, MetricInfo] = {
    "hits": MetricInfo(hits, True, 1.0, "fraction", "arXiv 1409.0575"),
    "top_k": MetricInfo(top_k, True, 100.0, "%", "arXiv 1409.0575"),
    "f1": MetricInfo(f1, True, 100.0, "%", "van Rijsbergen, Information Retrieval, 1979"),
    "pearson": MetricInfo(pearson, True, 1.0, "", "Pearson, Proceedings of the Royal Society 58, 1895"),
    "spearman": MetricInfo(spearman, True, 1.0, "", "Spearman, American Journal of Psychology 15, 1904"),
    "perplexity": MetricInfo(perplexity, False, 1.0, "", "Jelinek et al., JASA 62 (S1), 1977"),
    "bits_per_character": MetricInfo(bits_per_character, False, 0.0, "bits", "arXiv 1308.0850"),
    "word_error": MetricInfo(word_error, False, 0.0, "%", "Levenshtein, Soviet Physics Doklady 10, 1966"),
    "word_accuracy": MetricInfo(word_accuracy, True, 100.0, "%", "arXiv 1506.00196"),
}
"""All metrics by name."""


def known_metric(label: str) -> MetricInfo | None:
    """The metric named by a task's ``metric``, or None for a label that is not in METRICS.

    >>> known_metric("Word error, %").higher_is_better, known_metric("minus distance")
    (False, None)
    """
    return METRICS.get("_".join(re.findall(r"[a-z0-9]+", label.lower())))
